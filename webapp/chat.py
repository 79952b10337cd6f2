"""The chat: asking over the websocket, in a stored conversation or in one that is kept nowhere."""

import hashlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from broker import chat, conversations, keys, queues, registry, streams
from broker.connection import redis_errors
from broker.errors import BadRequest, FleetError, NotFound
from broker.messages import ChatRequest, Message, new_id, pack
from broker.queues import Turn
from webapp.protocol import Ask, Asking, Continue, Regenerate, Resume, Stop

if TYPE_CHECKING:
    from webapp.sockets import Socket


async def ask(socket: "Socket", message: Ask) -> None:
    """A new user message, and its answer."""
    if message.temporary:
        return await _ask_in_passing(socket, message)
    if message.history or message.begun:
        raise BadRequest("history: only for a temporary chat; others have theirs stored.")
    earlier: tuple[Message, ...] = ()
    if message.conversation:
        _, stored = await conversations.load(socket.broker, message.conversation, socket.owner)
        earlier = conversations.history(conversations.path(stored, message.parent))
    elif message.parent:
        raise BadRequest("parent: there is no conversation that it could be in.")
    title = message.text if message.text.strip() else ", ".join(name for name, _ in message.attached)
    turn = Turn(
        message.conversation or _named(socket, message, "conversation"),
        _named(socket, message, "message"),
        "" if message.conversation else conversations.title_of(title),
        conversations.user_message(message.text, message.parent, int(time.time() * 1000), message.attached),
        _stored(message),
    )
    await _answer(socket, message, (*earlier, Message("user", message.seen)), turn, message.parent)


async def regenerate(socket: "Socket", message: Regenerate) -> None:
    """Another answer to a user message."""
    _, stored = await conversations.load(socket.broker, message.conversation, socket.owner)
    path = conversations.path(stored, message.message)
    if path[-1].role != "user":
        raise BadRequest("message: only a message of yours can be answered again.")
    turn = Turn(message.conversation, message.message, settings=_stored(message))
    await _answer(socket, message, conversations.history(path), turn, path[-1].parent)


async def go_on(socket: "Socket", message: Continue) -> None:
    """An answer that goes on where another one ended."""
    _, stored = await conversations.load(socket.broker, message.conversation, socket.owner)
    path = conversations.path(stored, message.message)
    if path[-1].role != "assistant" or not path[-1].text:
        raise BadRequest("message: only an answer that has begun can go on.")
    await _can_go_on(socket, message)
    turn = Turn(message.conversation, path[-1].parent, settings=_stored(message), begun=pack(_unended(path[-1].parts)))
    await _answer(socket, message, conversations.history(path), turn, path[-2].parent, go_on=True)


async def _ask_in_passing(socket: "Socket", message: Ask) -> None:
    """Nothing of it is stored, and it ends when the page goes."""
    if message.conversation or message.parent:
        raise BadRequest("A temporary chat is in no conversation.", param="conversation")
    said = [Message(one.role, one.seen) for one in message.history] + [Message("user", message.seen)]
    if message.begun:
        await _can_go_on(socket, message)
        said.append(Message("assistant", message.begun))
    await _answer(socket, message, tuple(said), None, "", go_on=bool(message.begun))


async def _can_go_on(socket: "Socket", message: Asking) -> None:
    card = await registry.find(socket.broker, message.model)
    if card.state == "ready" and "continue" not in card.abilities:
        raise BadRequest(f"{message.model} cannot go on in an answer. Write it again instead.")


def _unended(parts: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """The parts of an answer up to the text that goes on: what is behind it was not said to the model."""
    last = max(i for i, part in enumerate(parts) if part["kind"] == "text")
    return list(parts[: last + 1])


def _stored(message: Asking) -> str:
    """The settings as they are kept with the conversation."""
    return json.dumps(message.settings.stored, ensure_ascii=False)


def _named(socket: "Socket", message: Asking, what: str) -> str:
    """An id that is the same when this page sends the same message again, and that nobody else can name."""
    if not message.ref:
        return new_id()
    digest = hashlib.sha256(f"{socket.owner} {what} {message.ref}".encode()).hexdigest()
    return message.ref[:12] + digest[:14]


async def _answer(
    socket: "Socket",
    asked: Asking,
    messages: tuple[Message, ...],
    turn: Turn | None,
    parent: str,
    *,
    go_on: bool = False,
) -> None:
    request = ChatRequest(
        asked.model,
        asked.settings.opening + messages,
        asked.settings.sampling(secrets.randbits(63)),
        request_id=_named(socket, asked, "request"),
        owner=socket.owner,
        keep=turn is not None,
        template_kwargs=asked.settings.template_kwargs,
        continue_final_message=go_on,
    )
    async with chat.ask(socket.broker, request, turn) as reader:
        accepted = {
            "type": "accepted",
            "ref": asked.ref,
            "request_id": request.request_id,
            "conversation": turn.conversation if turn else "",
            "message": turn.parent if turn else "",
            "parent": parent,
            "title": turn.title if turn else "",
        }
        if turn and turn.title:  # it is the first of a conversation
            socket.titles.begin(turn.conversation, socket.owner, request.model, request.request_id)
        await socket.send(pack(accepted))
        await _relay(socket, reader, request.model)


async def _relay(socket: "Socket", reader: streams.Reader, model: str) -> None:
    try:
        with socket.live.placing(socket, model, reader.request_id):
            await socket.relay(reader)
    except FleetError as error:
        await socket.fail(error, {"request_id": reader.request_id})


async def resume(socket: "Socket", message: Resume) -> None:
    """The frames of an answer from a number on: after a lost connection, a reload, or in another tab."""
    async with redis_errors():
        owner, model = await socket.broker.redis.hmget(keys.request(message.request_id), ["owner", "model"])
    if owner is None or owner.decode() != socket.owner:
        raise NotFound("This answer is not being written any more. Reload the conversation.")
    async with streams.read(socket.broker, message.request_id, message.from_, message.epoch) as reader:
        await _relay(socket, reader, model.decode())


async def stop(socket: "Socket", message: Stop) -> None:
    """End an answer; its last frame comes on its stream."""
    await queues.cancel(socket.broker, message.request_id, socket.owner)


HANDLERS: dict[str, Callable[["Socket", Any], Awaitable[None]]] = {
    "ask": ask,
    "regenerate": regenerate,
    "continue": go_on,
    "resume": resume,
    "stop": stop,
}
