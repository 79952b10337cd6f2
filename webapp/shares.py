"""Links to snapshots over HTTP: made, listed and revoked by their owner, read by anybody; and the page on paper."""

from aiohttp import web

from broker import conversations, shares
from broker.errors import BadRequest
from webapp.body import read_json
from webapp.session import SESSIONS
from webapp.state import BROKER, TEMPLATES

BODY_BYTES = 1024


async def create(request: web.Request) -> web.Response:
    """POST {"leaf": ...}: a link to what is shown; without a leaf, to what was shown last."""
    body = await read_json(request, BODY_BYTES) if request.can_read_body else {}
    leaf = body.pop("leaf", "")
    if body or not isinstance(leaf, str):
        raise BadRequest("leaf: the id of a message is expected, and nothing else.")
    owner = await request.app[SESSIONS].owner(request)
    share = await shares.create(request.app[BROKER], request.match_info["conversation"], owner, leaf)
    return web.json_response(share.to_map(), status=201)


async def index(request: web.Request) -> web.Response:
    """The owner's links, the latest first."""
    owner = await request.app[SESSIONS].owner(request)
    return web.json_response({"shares": [s.to_map() for s in await shares.listed(request.app[BROKER], owner)]})


async def revoke(request: web.Request) -> web.Response:
    """DELETE: the link shows nothing any more."""
    owner = await request.app[SESSIONS].owner(request)
    await shares.revoke(request.app[BROKER], request.match_info["share"], owner)
    return web.Response(status=204)


async def page(request: web.Request) -> web.Response:
    """What a link shows. Nobody needs a cookie for it, and nobody gets one."""
    snapshot = await shares.read(request.app[BROKER], request.match_info["share"])
    found = {"title": snapshot.title, "at": snapshot.created, "messages": snapshot.messages, "shared": True}
    return _page(request, found)


async def paper(request: web.Request) -> web.Response:
    """The owner's page for printing; `?leaf=` says which branch."""
    owner = await request.app[SESSIONS].owner(request)
    conversation, messages = await conversations.load(request.app[BROKER], request.match_info["conversation"], owner)
    path = conversations.path(messages, request.query.get("leaf") or conversation.leaf)
    found = {"title": conversation.title, "at": conversation.updated, "messages": [m.to_map() for m in path]}
    return _page(request, found | {"shared": False})


def _page(request: web.Request, found: dict[str, object]) -> web.Response:
    text = request.app[TEMPLATES].get_template("share.html").render(**found)
    headers = {"Cache-Control": "no-store", "X-Robots-Tag": "noindex, nofollow"}
    response = web.Response(text=text, content_type="text/html", headers=headers)
    response.enable_compression()
    return response
