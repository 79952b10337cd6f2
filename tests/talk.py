"""Conversations for tests: begun, answered and imported without a model."""

from typing import Any

from broker import conversations, imports, keys, queues, streams, transcripts
from broker.connection import Broker
from broker.imports import Imported
from broker.messages import Frame, new_id
from broker.queues import Turn
from broker.streams import Written
from helpers import claim, request


async def begin(
    broker: Broker, owner: str = "anna", text: str = "hello there", conversation: str = "", parent: str = ""
) -> tuple[Turn, str]:
    """A question in a conversation, and the id of the request that answers it."""
    title = "" if conversation else conversations.title_of(text)
    turn = Turn(conversation or new_id(), new_id(), title, conversations.user_message(text, parent, 1))
    asked = request(text, owner=owner)
    await queues.enqueue(broker, asked, turn)
    return turn, asked.request_id


async def say(broker: Broker, request_id: str, *texts: str, kind: str = "text") -> None:
    """The answer, written by a worker that this test plays."""
    (held,) = await claim(broker, token=request_id)
    assert held.request_id == request_id
    for seq, text in enumerate(texts):
        end = (
            {"reason": "stop", "usage": {"prompt_tokens": 3, "completion_tokens": 2}} if seq == len(texts) - 1 else None
        )
        frame = Frame(request_id, seq, 1, text, kind if seq == 0 else "text", end=end)
        await streams.append(broker, [Written(request_id, held.token, seq, frame.encode(), last=end is not None)])


async def talk(broker: Broker, question: str = "hello there", answer: str = "General!", owner: str = "anna") -> str:
    """A whole conversation; gives its id."""
    turn, request_id = await begin(broker, owner, question)
    await say(broker, request_id, answer)
    return turn.conversation


async def imported(broker: Broker, *updated: int, owner: str = "anna", text: str = "word", **more: Any) -> list[str]:
    """Conversations of one message that were last changed at these times (milliseconds); gives their ids, latest first."""
    message = {"role": "user", "parent": "", "created": 1, "parts": [{"kind": "text", "text": text}]}
    found = [Imported(f"talk {at}", at, at, "a", {"a": message}, **more) for at in updated]
    await transcripts.store(broker, owner, found)
    key = keys.archived(owner) if more.get("archived") else keys.conversations(owner)
    return [one.decode() for one in await broker.redis.zrevrange(key, 0, len(updated) - 1)]


def parse(text: str) -> list[Imported]:
    """What a file of this text holds."""
    return imports.parse(text.encode())
