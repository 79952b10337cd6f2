"""Saved chats over HTTP: the list, and what is changed about them. Each is its owner's alone."""

import math

from aiohttp import web

from broker import conversations
from broker.errors import BadRequest
from webapp.session import SESSIONS
from webapp.state import BROKER


async def index(request: web.Request) -> web.Response:
    """The owner's conversations, latest first, a page at a time."""
    try:
        before = float(request.query.get("before", "inf"))
        if math.isnan(before):
            raise ValueError
    except ValueError:
        raise BadRequest("before: a time in milliseconds since 1970.") from None
    owner = await request.app[SESSIONS].owner(request)
    found = await conversations.listed(request.app[BROKER], owner, before)
    more = len(found) == conversations.PAGE
    return web.json_response({"conversations": [c.to_map() for c in found], "more": more})


async def rename(request: web.Request) -> web.Response:
    """PATCH {"title": ...}."""
    try:
        title = (await request.json())["title"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadRequest("title: a JSON object with a title is expected.") from None
    if not isinstance(title, str):
        raise BadRequest("title: text is expected.")
    owner = await request.app[SESSIONS].owner(request)
    await conversations.rename(request.app[BROKER], request.match_info["conversation"], owner, title)
    return web.Response(status=204)


async def delete(request: web.Request) -> web.Response:
    """Delete a conversation; answers that are being written in it are stopped."""
    owner = await request.app[SESSIONS].owner(request)
    await conversations.delete(request.app[BROKER], request.match_info["conversation"], owner)
    return web.Response(status=204)
