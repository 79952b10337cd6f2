"""Saved chats over HTTP: the list and the search, and what is changed about them.

Each is its owner's alone: the broker checks that.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from broker import search, shelf
from broker.connection import Broker, keep_trying
from broker.errors import BadRequest
from broker.tasks import beside
from webapp.body import read_json
from webapp.session import SESSIONS
from webapp.state import BROKER

logger = logging.getLogger("fleetchat.web")

BODY_BYTES = 65_536
MOST_LISTED = 500  # in one answer
Change = Callable[[Broker, str, str, Any], Awaitable[None]]


async def index(request: web.Request) -> web.Response:
    """The owner's conversations, latest first, a page at a time; the first page also has the tags that there are."""
    owner, query = await request.app[SESSIONS].owner(request), request.query
    broker, before = request.app[BROKER], query.get("before", "")
    archived, count = query.get("archived", "") == "1", query.get("count", str(shelf.PAGE))
    if not (count.isascii() and count.isdigit() and len(count) < 4 and 0 < int(count) <= MOST_LISTED):
        raise BadRequest(f"count: a number from 1 to {MOST_LISTED}.", param="count")
    found = await shelf.listed(broker, owner, before, tag=query.get("tag", ""), archived=archived, count=int(count))
    answer: dict[str, Any] = {"conversations": [c.to_map() for c in found.conversations], "after": found.after}
    if not before:
        answer["tags"] = await shelf.tags(broker, owner)
    return web.json_response(answer)


async def find(request: web.Request) -> web.Response:
    """`?q=`: a short time's worth of looking, from `before` on; `after` says where to go on, until it is empty."""
    owner, query = await request.app[SESSIONS].owner(request), request.query
    found = await search.find(request.app[BROKER], owner, query.get("q", ""), query.get("before", ""))
    return web.json_response({"results": [r.to_map() for r in found.results], "after": found.after})


CHANGES: dict[str, tuple[Callable[[Any], bool], str, Change]] = {
    "title": (lambda value: isinstance(value, str), "text", shelf.rename),
    "pinned": (lambda value: isinstance(value, bool), "true or false", shelf.pin),
    "archived": (lambda value: isinstance(value, bool), "true or false", shelf.archive),
    "tags": (
        lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value), "a list of texts", shelf.tag,
    ),
}  # fmt: skip


async def change(request: web.Request) -> web.Response:
    """PATCH: one or more of `CHANGES`; all are looked at before the first is made."""
    changes = await read_json(request, BODY_BYTES)
    if not changes or set(changes) - set(CHANGES):
        raise BadRequest(f"One of these is expected, and nothing else: {', '.join(CHANGES)}.")
    for name, value in changes.items():
        fits, expected, _ = CHANGES[name]
        if not fits(value):
            raise BadRequest(f"{name}: {expected} is expected.", param=name)
    owner = await request.app[SESSIONS].owner(request)
    for name, value in changes.items():
        await CHANGES[name][2](request.app[BROKER], request.match_info["conversation"], owner, value)
    return web.Response(status=204)


async def delete(request: web.Request) -> web.Response:
    """Delete a conversation; answers that are being written in it are stopped. `restore` brings it back for a while."""
    owner = await request.app[SESSIONS].owner(request)
    await shelf.delete(request.app[BROKER], request.match_info["conversation"], owner)
    return web.Response(status=204)


async def restore(request: web.Request) -> web.Response:
    """Undo a deletion."""
    owner = await request.app[SESSIONS].owner(request)
    await shelf.restore(request.app[BROKER], request.match_info["conversation"], owner)
    return web.Response(status=204)


async def retained(app: web.Application) -> AsyncIterator[None]:
    """For `cleanup_ctx`: what was kept under another setting is given its new time, in the background."""
    async with beside(_retain(app[BROKER])):
        yield


async def _retain(broker: Broker) -> None:
    try:
        await keep_trying(lambda: shelf.retain(broker))
    except Exception:
        logger.exception("FLEETCHAT_KEEP_DAYS is not known to all conversations yet")
