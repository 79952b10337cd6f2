"""Conversations as files over HTTP: one or all of them out, and files of ours, ChatGPT's and FastChat's in."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import quote

from aiohttp import web

from broker import conversations, imports, shelf, transcripts
from broker.errors import BadRequest, NoSuchConversation, Overloaded
from webapp.body import read
from webapp.session import SESSIONS
from webapp.state import BROKER

UPLOAD_SECONDS = 300.0
AT_ONCE = 4  # files that are taken, each of which is in memory meanwhile
PLACES = web.AppKey("import_places", asyncio.Semaphore)
FORMS: dict[str, tuple[str, Callable[..., str]]] = {
    "md": ("text/markdown", lambda conversation, messages, path: transcripts.to_markdown(conversation, path)),
    "json": ("application/json", transcripts.to_json),
}


async def export(request: web.Request) -> web.Response:
    """One conversation: `?format=md`, `json`, or `html`, which is the page to print; `?leaf=` says which branch."""
    owner, form = await request.app[SESSIONS].owner(request), request.query.get("format", "json")
    conversation_id, leaf = request.match_info["conversation"], request.query.get("leaf", "")
    if form == "html":
        address = request.app.router["conversation-print"].url_for(conversation=conversation_id)
        return web.Response(status=303, headers={"Location": str(address.with_query({"leaf": leaf} if leaf else {}))})
    if form not in FORMS:
        raise BadRequest(f"format: one of {', '.join(FORMS)}, html is expected.", param="format")
    conversation, messages = await conversations.load(request.app[BROKER], conversation_id, owner)
    content_type, write = FORMS[form]
    text = write(conversation, messages, conversations.path(messages, leaf or conversation.leaf))
    return web.Response(text=text, content_type=content_type, headers=_attached(conversation.title, form))


async def export_all(request: web.Request) -> web.StreamResponse:
    """All of the owner's conversations as one JSON file, written while they are read."""
    owner, broker = await request.app[SESSIONS].owner(request), request.app[BROKER]
    name = f"FleetChat {datetime.now(UTC).date().isoformat()}"
    response = web.StreamResponse(headers={"Content-Type": "application/json", **_attached(name, "json")})
    places = await shelf.every(broker, owner)
    await response.prepare(request)
    with suppress(ConnectionError):  # who has left needs no more of it
        await response.write(f'{{"fleetchat": {transcripts.FORMAT}, "conversations": ['.encode())
        comma = ""
        for _, one in places:
            try:
                found = transcripts.to_map(*await conversations.load(broker, one, owner))
            except NoSuchConversation:
                continue  # deleted meanwhile, or expired
            await response.write(f"{comma}\n{json.dumps(found, ensure_ascii=False)}".encode())
            comma = ","
        await response.write(b"\n]}\n")
    return response


async def take(request: web.Request) -> web.Response:
    """POST a file; all of its conversations are the owner's then, or none, when something in it is wrong."""
    owner, broker = await request.app[SESSIONS].remember(request, response := web.Response()), request.app[BROKER]
    places = request.app[PLACES]
    if places.locked():
        raise Overloaded("Others are importing files. Please try again in a moment.", retry_after=5)
    async with places:
        raw = await read(request, imports.BYTES, UPLOAD_SECONDS)
        found = await asyncio.to_thread(imports.parse, raw)
        stored = await asyncio.shield(broker.later(transcripts.store(broker, owner, found)))
    response.content_type, response.text = "application/json", json.dumps({"conversations": stored})
    return response


def _attached(name: str, suffix: str) -> dict[str, str]:
    clean = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else " " for c in name)
    clean = " ".join(clean.split()).strip(" .") or "conversation"
    plain = f"{clean}.{suffix}".encode("ascii", "replace").decode().replace("?", "_")
    return {"Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(f'{clean}.{suffix}')}"}
