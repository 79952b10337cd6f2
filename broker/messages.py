"""What travels between the floors, as frozen dataclasses with msgpack `encode` and `decode`.

Readers ignore keys that they do not know; a value that is absent is left out. Nothing here knows Redis, models or HTTP,
and nothing is ever pickled.
"""

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import msgpack

from broker.errors import BadRequest

RANGES = {  # of sampling parameters
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (0, math.inf),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "max_tokens": (0, math.inf),
    "min_tokens": (0, math.inf),
    "logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
}


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

    role: str  # system, developer, user, assistant or tool
    content: str
    name: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()  # of an assistant, in OpenAI's form
    tool_call_id: str = ""  # of a tool's answer: which call it answers

    def to_map(self) -> dict[str, Any]:
        """OpenAI's form: what is empty is absent, but for the content."""
        return {k: v for k, v in asdict(self).items() if v or k == "content"}


@dataclass(frozen=True, slots=True)
class Structure:
    """A form that the answer must have."""

    kind: str  # json_schema, json_object, regex, choice or grammar
    value: str = ""  # the schema as JSON, the regular expression, a JSON list of strings, or a grammar in Lark's syntax


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen and when to stop. Temperature 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0  # least probability of a token, as a share of the likeliest one's
    repetition_penalty: float = 1.0  # over prompt and answer
    presence_penalty: float = 0.0  # over the answer, as OpenAI defines both
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, what is added to its logit
    max_tokens: int | None = None  # None: as many as the context has room for
    min_tokens: int = 0  # before them neither an end token nor a stop string ends the answer
    ignore_eos: bool = False
    seed: int = 0  # the same seed, prompt and weights give the same text
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None  # how many alternatives (0 to 20) come with each token's log-probability; None: nothing
    prompt_logprobs: int | None = None  # the same for the tokens of the prompt
    structure: Structure | None = None

    def check(self) -> None:
        """Raises BadRequest, with the name and the limits, when a value is out of its range."""
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                limits = f"from {least:g} to {most:g}" if most < math.inf else f"at least {least:g}"
                raise BadRequest(f"{name} is {value}, but must be {limits}.")
        if not all(math.isfinite(bias) for _, bias in self.logit_bias):
            raise BadRequest("logit_bias has a value that is not a number.")

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """From the map that `asdict` makes; TypeError or ValueError when it is of a wrong shape."""
        form = raw.get("structure")
        return cls(
            **_known(cls, raw)
            | {
                "stop": tuple(raw.get("stop", ())),
                "stop_token_ids": tuple(raw.get("stop_token_ids", ())),
                "logit_bias": tuple((int(i), float(bias)) for i, bias in raw.get("logit_bias", ())),
                "structure": None if form is None else Structure(**_known(Structure, form)),
            }
        )


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request for one answer."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    request_id: str = field(default_factory=new_id)
    owner: str = ""  # who asks; "" has no share of the queue to use up
    keep: bool = False  # an answer in a stored chat: only Stop or the time limit ends it
    tools: tuple[Mapping[str, Any], ...] = ()  # what the model may call, in OpenAI's form
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # for the chat template, as enable_thinking
    continue_final_message: bool = False  # the last message is the assistant's, and the answer goes on in it

    def encode(self) -> bytes:
        return pack(asdict(self))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises BadRequest when the map is of a wrong shape: what lies in Redis is checked like what comes from outside."""
        try:
            raw = unpack(data)
            sampling = Sampling.of(raw["sampling"])
            sampling.check()
            messages = tuple(_message(m) for m in raw["messages"])
            return cls(
                **_known(cls, raw) | {"messages": messages, "sampling": sampling, "tools": tuple(raw.get("tools", ()))}
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
    logprobs: Sequence[Mapping[str, Any]] | None = None  # of each token, see `workers.engine.TokenLogprob`
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
        if self.logprobs is not None:
            frame["logprobs"] = self.logprobs
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


def _message(raw: Mapping[str, Any]) -> Message:
    more = {key: str(raw[key]) for key in ("name", "tool_call_id") if raw.get(key)}
    return Message(str(raw["role"]), str(raw["content"]), tool_calls=tuple(raw.get("tool_calls", ())), **more)


def _known(cls: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in raw.items() if key in names}


def count_bytes(messages: Sequence[Message]) -> int:
    """UTF-8 bytes of all contents together."""
    return sum(len(m.content.encode()) for m in messages)
