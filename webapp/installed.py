"""The site as an app on a device: its manifest, its service worker, and the page for when there is no network."""

from aiohttp import web

from webapp.languages import render
from webapp.statics import STATICS

FRESH = {"Cache-Control": "no-cache"}


async def manifest(request: web.Request) -> web.Response:
    """What the app is called, in the reader's language, and its icons."""
    response = render(request, "manifest.json")
    response.content_type = "application/manifest+json"
    response.headers.update(FRESH)
    return response


async def worker(request: web.Request) -> web.Response:
    """The service worker of the whole site. It changes with the static files, and then browsers take the new one."""
    statics = request.app[STATICS]
    first = f'const STATIC = "{statics.prefix}";\n'
    return web.Response(
        body=first.encode() + statics.found["sw.js"].body, content_type="text/javascript", headers=FRESH
    )


async def offline(request: web.Request) -> web.Response:
    """What the service worker keeps, and shows when the server cannot be reached."""
    response = render(request, "offline.html", title="FleetChat")
    response.headers.update(FRESH)
    return response
