"""The pages, and the list of models that they show."""

from aiohttp import web

from broker import registry
from webapp.languages import render
from webapp.session import SESSIONS
from webapp.state import BROKER

DEEP_LINKS = {"arena": "/arena", "compare": "/compare", "leaderboard": "/leaderboard"}
"""Addresses that FastChat's pages have, /?leaderboard, and where these pages are here."""


async def chat(request: web.Request) -> web.Response:
    """The chat page; which conversation it shows, its script reads from the address."""
    for name, place in DEEP_LINKS.items():
        if name in request.query and request.path == "/":
            return web.Response(status=302, headers={"Location": place})
    response = render(request, "chat.html", title="FleetChat", new=request.path == "/")
    response.headers["Cache-Control"] = "no-store"
    await request.app[SESSIONS].remember(request, response)
    return response


async def models(request: web.Request) -> web.Response:
    """All models with their state, as the picker shows them."""
    return web.json_response({"models": [m.to_map() for m in await registry.models(request.app[BROKER])]})
