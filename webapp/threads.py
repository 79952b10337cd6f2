"""A conversation's messages over HTTP: a page of a path, which branch is shown, deleting and rating one message."""

from typing import Any

from aiohttp import web

from broker import threads
from broker.errors import BadRequest
from webapp.session import SESSIONS
from webapp.state import BROKER

MOST = 200  # messages of one page


async def show(request: web.Request) -> web.Response:
    """The last messages of a path: `leaf` says which path, `before` and `count` which of its messages."""
    owner = await request.app[SESSIONS].owner(request)
    asked = request.query
    try:
        count = int(asked.get("count", threads.PAGE))
        if not 1 <= count <= MOST:
            raise ValueError
    except ValueError:
        raise BadRequest(f"count: a whole number from 1 to {MOST}.", param="count") from None
    shown = await threads.show(
        request.app[BROKER], _conversation(request), owner, asked.get("leaf", ""), asked.get("before", ""), count
    )
    response = web.json_response(shown.to_map())
    response.enable_compression()
    return response


async def choose(request: web.Request) -> web.Response:
    """PUT {"leaf": message}: the branch that is shown when it is opened again."""
    leaf = _text(await _body(request), "leaf")
    owner = await request.app[SESSIONS].owner(request)
    await threads.choose(request.app[BROKER], _conversation(request), owner, leaf)
    return web.Response(status=204)


async def delete(request: web.Request) -> web.Response:
    """Delete a message with everything below it; gives the leaf that is shown now."""
    owner = await request.app[SESSIONS].owner(request)
    leaf = await threads.delete(request.app[BROKER], _conversation(request), owner, request.match_info["message"])
    return web.json_response({"leaf": leaf})


async def rate(request: web.Request) -> web.Response:
    """PUT {"rating": up, down, flag or null, "note": text}."""
    body = await _body(request)
    rating, note = _text(body, "rating"), _text(body, "note")
    owner = await request.app[SESSIONS].owner(request)
    message = request.match_info["message"]
    await threads.rate(request.app[BROKER], _conversation(request), owner, message, rating, note)
    return web.Response(status=204)


def _conversation(request: web.Request) -> str:
    return request.match_info["conversation"]


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise BadRequest("A JSON object is expected.")
    return body


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"{name}: text is expected.", param=name)
    return value or ""
