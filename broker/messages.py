"""What travels between the floors, as frozen dataclasses with msgpack `encode` and `decode`.

Readers ignore keys that they do not know; a value that is absent is left out. Nothing here knows Redis, models or HTTP,
and nothing is ever pickled.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import msgpack

from broker.errors import BadRequest


def pack(value: Any) -> bytes:
    """msgpack bytes; a value that msgpack does not know becomes its repr, so that a log line is never an error."""
    return bytes(msgpack.packb(value, default=repr))


def unpack(data: bytes) -> Any:
    """The value in `data`.

    Raises:
        ValueError: not msgpack, bytes left over, nested too deep, or text that is not UTF-8.
    """
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, timestamp=0)
    except ValueError:
        raise
    except Exception as error:  # msgpack's own tree is only partly ValueError
        raise ValueError(f"not msgpack: {error}") from error


def new_id() -> str:
    """A name for a request, message or conversation: 26 characters, sortable by time, not guessable (56 random bits)."""
    return f"{time.time_ns() // 1_000_000:012x}" + secrets.token_hex(7)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation as a model sees it."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen and when to stop. Temperature 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int | None = None  # None: as many as the context has room for
    seed: int = 0  # the same seed, prompt and weights give the same text
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request for one answer."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    request_id: str = field(default_factory=new_id)
    owner: str = ""  # who asks; "" has no share of the queue to use up
    keep: bool = False  # an answer in a stored chat: only Stop or the time limit ends it

    def encode(self) -> bytes:
        return pack(asdict(self))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises BadRequest when the map is of a wrong shape: what lies in Redis is checked like what comes from outside."""
        try:
            raw = unpack(data)
            return cls(
                **_known(cls, raw)
                | {
                    "messages": tuple(Message(str(m["role"]), str(m["content"])) for m in raw["messages"]),
                    "sampling": Sampling(
                        **_known(Sampling, raw["sampling"]) | {"stop": tuple(raw["sampling"].get("stop", ()))}
                    ),
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadRequest(f"The stored request cannot be read: {error!r}.") from error


@dataclass(frozen=True, slots=True)
class Frame:
    """A piece of an answer, numbered from 0. The one with `end` is the last."""

    request_id: str
    seq: int
    epoch: int  # how many workers have held the request so far
    text: str = ""
    kind: str = "text"  # text, reasoning or tool
    data: Any = None
    end: Mapping[str, Any] | None = None  # reason, usage, timings, error

    def encode(self) -> bytes:
        frame: dict[str, Any] = {
            "request_id": self.request_id,
            "seq": self.seq,
            "epoch": self.epoch,
            "text": self.text,
        }
        if self.kind != "text":
            frame["kind"] = self.kind
        if self.data is not None:
            frame["data"] = self.data
        if self.end is not None:
            frame["end"] = self.end
        return bytes(msgpack.packb(frame))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        return cls(**_known(cls, unpack(data)))


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a worker says about a model; kept after the worker has gone."""

    name: str
    state: str = "loading"  # loading, ready, failed; a card without a living worker reads as gone
    progress: int = 0  # percent, while loading
    why: str = ""  # one sentence, when failed
    kind: str = "chat"
    parent: str = ""
    context: int = 0  # tokens, prompt and answer together
    abilities: tuple[str, ...] = ()
    licence: str = ""
    description: str = ""
    rank: int = 0  # its place among models of one state: real ones come before those in the box

    def encode(self) -> bytes:
        return pack(asdict(self))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        raw = unpack(data)
        return cls(**_known(cls, raw) | {"abilities": tuple(raw.get("abilities", ()))})


def _known(cls: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in raw.items() if key in names}


def count_bytes(messages: Sequence[Message]) -> int:
    """UTF-8 bytes of all contents together."""
    return sum(len(m.content.encode()) for m in messages)
