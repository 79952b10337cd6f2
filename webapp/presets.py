"""Presets over HTTP: a person's settings saved by name. Each is its owner's alone."""

from typing import Any

from aiohttp import web

from broker import presets
from broker.errors import BadRequest
from webapp import protocol
from webapp.session import SESSIONS
from webapp.state import BROKER


async def index(request: web.Request) -> web.Response:
    """The owner's presets, by name."""
    owner = await request.app[SESSIONS].owner(request)
    found = await presets.listed(request.app[BROKER], owner)
    return web.json_response({"presets": [{"name": name, "settings": settings} for name, settings in found]})


async def save(request: web.Request) -> web.Response:
    """PUT settings as an ask carries them; what the name had before is written over."""
    settings = protocol.parse_settings(await _body(request))
    owner = await request.app[SESSIONS].owner(request)
    await presets.save(request.app[BROKER], owner, request.match_info["preset"], settings.stored)
    return web.Response(status=204)


async def rename(request: web.Request) -> web.Response:
    """PATCH {"name": ...}."""
    body = await _body(request)
    name = body.get("name") if isinstance(body, dict) else None
    if not isinstance(name, str):
        raise BadRequest("name: text is expected.", param="name")
    owner = await request.app[SESSIONS].owner(request)
    await presets.rename(request.app[BROKER], owner, request.match_info["preset"], name)
    return web.Response(status=204)


async def delete(request: web.Request) -> web.Response:
    """DELETE one."""
    owner = await request.app[SESSIONS].owner(request)
    await presets.delete(request.app[BROKER], owner, request.match_info["preset"])
    return web.Response(status=204)


async def _body(request: web.Request) -> Any:
    try:
        return await request.json()
    except (ValueError, RecursionError):
        raise BadRequest("A JSON object is expected.") from None
