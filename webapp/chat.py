"""The chat: asking in a stored conversation, over the websocket."""

import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from broker import chat, conversations, keys, queues, streams
from broker.connection import redis_errors
from broker.errors import BadRequest, NotFound
from broker.messages import ChatRequest, Message, new_id, pack
from broker.queues import Turn
from webapp.protocol import Ask, Regenerate, Resume, Stop

if TYPE_CHECKING:
    from webapp.sockets import Socket


async def ask(socket: "Socket", message: Ask) -> None:
    """A new user message, and its answer."""
    earlier: tuple[Message, ...] = ()
    if message.conversation:
        _, stored = await conversations.load(socket.broker, message.conversation, socket.owner)
        earlier = conversations.history(conversations.path(stored, message.parent))
    elif message.parent:
        raise BadRequest("parent: there is no conversation that it could be in.")
    turn = Turn(
        message.conversation or new_id(),
        new_id(),
        "" if message.conversation else conversations.title_of(message.text),
        conversations.user_message(message.text, message.parent, int(time.time() * 1000)),
    )
    await _answer(socket, message, (*earlier, Message("user", message.text)), turn, message.parent)


async def regenerate(socket: "Socket", message: Regenerate) -> None:
    """Another answer to a user message."""
    _, stored = await conversations.load(socket.broker, message.conversation, socket.owner)
    path = conversations.path(stored, message.message)
    if path[-1].role != "user":
        raise BadRequest("message: only a message of yours can be answered again.")
    turn = Turn(message.conversation, message.message)
    await _answer(socket, message, conversations.history(path), turn, path[-1].parent)


async def _answer(
    socket: "Socket", asked: Ask | Regenerate, messages: tuple[Message, ...], turn: Turn, parent: str
) -> None:
    sampling = asked.settings.sampling(secrets.randbits(63))
    request = ChatRequest(asked.model, messages, sampling, owner=socket.owner, keep=True)
    async with chat.ask(socket.broker, request, turn) as reader:
        accepted = {
            "type": "accepted",
            "ref": asked.ref,
            "request_id": request.request_id,
            "conversation": turn.conversation,
            "message": turn.parent,
            "parent": parent,
            "title": turn.title,
        }
        if turn.title:  # it is the first of a conversation
            socket.titles.begin(turn.conversation, socket.owner, request.model, request.request_id)
        await socket.send(pack(accepted))
        with socket.live.placing(socket, request.model, request.request_id):
            await socket.relay(reader)


async def resume(socket: "Socket", message: Resume) -> None:
    """The frames of an answer from a number on: after a lost connection, a reload, or in another tab."""
    async with redis_errors():
        owner, model = await socket.broker.redis.hmget(keys.request(message.request_id), ["owner", "model"])
    if owner is None or owner.decode() != socket.owner:
        raise NotFound("This answer is not being written any more. Reload the conversation.")
    async with streams.read(socket.broker, message.request_id, message.from_, message.epoch) as reader:
        with socket.live.placing(socket, model.decode(), message.request_id):
            await socket.relay(reader)


async def stop(socket: "Socket", message: Stop) -> None:
    """End an answer; its last frame comes on its stream."""
    await queues.cancel(socket.broker, message.request_id, socket.owner)


HANDLERS: dict[str, Callable[["Socket", Any], Awaitable[None]]] = {
    "ask": ask,
    "regenerate": regenerate,
    "resume": resume,
    "stop": stop,
}
