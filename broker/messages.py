"""What travels between the floors, as frozen dataclasses with msgpack `encode` and `decode`.

Readers ignore keys that they do not know; a value that is absent is left out. Nothing here knows Redis, models or HTTP,
and nothing is ever pickled.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Self

import msgpack

from broker.errors import BadRequest

INT = 2**31 - 1
RANGES: dict[str, tuple[Any, float, float]] = {  # of sampling parameters
    "temperature": (int | float, 0, 100),
    "top_p": (int | float, 0, 1),
    "top_k": (int, 0, INT),
    "min_p": (int | float, 0, 1),
    "repetition_penalty": (int | float, 0.01, 100),
    "presence_penalty": (int | float, -2, 2),
    "frequency_penalty": (int | float, -2, 2),
    "max_tokens": (int, 0, INT),
    "min_tokens": (int, 0, INT),
    "seed": (int, -(2**63), 2**64 - 1),
    "logprobs": (int, 0, 20),
    "prompt_logprobs": (int, 0, 20),
}
OPTIONAL = ("max_tokens", "logprobs", "prompt_logprobs")
NUMBERS = {int: "a whole number", int | float: "a number"}
COUNTS = {"stop": 64, "stop_token_ids": 1024, "logit_bias": 1024}
LONGEST_STOP = 1000  # characters
BIAS = 10_000
ROLES = ("system", "developer", "user", "assistant", "tool")
TOKEN_ID = 2**32 - 1  # the largest
TOKEN_BYTES = 4  # of text that a token stands for, where a prompt comes as ids
JOBS = "jobs"  # the queue, and the kind, of what is done without a model
MOST_INPUTS = 2048  # of one request for vectors; as many as OpenAI takes


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
    value: str = (
        ""  # the schema as JSON, the regular expression, a JSON list of strings, or a grammar in Lark's syntax or GBNF
    )


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
        """Raises BadRequest, with the name and the limits, when a value is of a wrong type or out of its range."""
        for name, (kind, least, most) in RANGES.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
                raise BadRequest(
                    f"{name} is {value!r:.40}, but must be {NUMBERS[kind]} from {least:g} to {most:g}.", param=name
                )
        if any(not isinstance(i, int) for i in self.stop_token_ids):
            raise BadRequest("stop_token_ids holds something that is no token id.", param="stop_token_ids")
        if any(not isinstance(text, str) or len(text) > LONGEST_STOP for text in self.stop):
            raise BadRequest(
                f"stop holds something that is no text of at most {LONGEST_STOP} characters.", param="stop"
            )
        if any(not -BIAS <= bias <= BIAS for _, bias in self.logit_bias):
            raise BadRequest(f"logit_bias holds a value that is no number from {-BIAS} to {BIAS}.", param="logit_bias")
        for name, most in COUNTS.items():
            if len(getattr(self, name)) > most:
                raise BadRequest(f"{name} has {len(getattr(self, name))} entries, and may have {most}.", param=name)

    def to_map(self) -> dict[str, Any]:
        """What travels."""
        return _flat(self) | {"structure": None if self.structure is None else _flat(self.structure)}

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """From the map that `to_map` makes; TypeError or ValueError when it is of a wrong shape."""
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

    JOB: ClassVar[str] = "chat"  # the worker's function
    KINDS: ClassVar[tuple[str, ...]] = ("chat",)  # of models that can do it
    ROOM: ClassVar[int] = 1  # times FLEETCHAT_PROMPT_BYTES
    BESIDE: ClassVar[bool] = False  # True: it takes no slot of a worker and waits for none

    model: str
    messages: tuple[Message, ...]  # empty when there is a prompt
    sampling: Sampling = field(default_factory=Sampling)
    request_id: str = field(default_factory=new_id)
    owner: str = ""  # who asks; "" has no share of the queue to use up
    keep: bool = False  # an answer in a stored chat: only Stop or the time limit ends it
    tools: tuple[Mapping[str, Any], ...] = ()  # what the model may call, in OpenAI's form
    must_call: tuple[
        str, ...
    ] = ()  # functions: the answer is a call of one of them, or calls; empty: as the model likes
    parallel_tool_calls: bool = True  # False: the first call ends the answer
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # for the chat template, as enable_thinking
    continue_final_message: bool = False  # the last message is the assistant's, and the answer goes on in it
    prompt: str | tuple[int, ...] | None = None  # a text, or its token ids, that the answer goes on from; no template

    @property
    def empty(self) -> bool:
        """Whether there is nothing to answer."""
        if self.prompt is not None:
            return not self.prompt
        last = self.messages[-1] if self.messages else None
        return last is None or not (last.content.strip() or last.role == "tool")  # a tool may have nothing to say

    def check(self) -> None:
        """Raises BadRequest when a value is out of its range."""
        self.sampling.check()

    @property
    def size(self) -> int:
        """UTF-8 bytes of all that goes into the prompt; a token id counts as so many as tokens mostly have."""
        if self.prompt is not None:
            return _size(self.prompt)
        more = [
            [m.name, m.tool_call_id, m.tool_calls] for m in self.messages if m.name or m.tool_call_id or m.tool_calls
        ]
        rest = (more, self.tools, self.template_kwargs)
        return sum(len(m.content.encode()) for m in self.messages) + (len(pack(rest)) if any(rest) else 0)

    def encode(self) -> bytes:
        return pack(_flat(self) | {"messages": list(map(_flat, self.messages)), "sampling": self.sampling.to_map()})

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises BadRequest when the map is of a wrong shape: what lies in Redis is checked like what comes from outside."""
        try:
            raw = unpack(data)
            sampling = Sampling.of(raw["sampling"])
            sampling.check()
            checked = {
                "messages": tuple(_message(m) for m in raw["messages"]),
                "sampling": sampling,
                "tools": tuple(raw.get("tools", ())),
                "must_call": tuple(raw.get("must_call", ())),
                "prompt": _prompt(raw.get("prompt")),
            }
            return cls(**_known(cls, raw) | checked)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadRequest(f"The stored request cannot be read: {error!r}.") from error


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """One request for the vectors of some texts."""

    JOB: ClassVar[str] = "embed"
    KINDS: ClassVar[tuple[str, ...]] = ("embedding",)
    ROOM: ClassVar[int] = 8  # these are many texts, and clients send some hundred pages at once
    BESIDE: ClassVar[bool] = False
    keep: ClassVar[bool] = False  # nobody waits for vectors that nobody reads

    model: str
    inputs: tuple[str | tuple[int, ...], ...]  # texts, or their token ids as the model's tokenizer gives them
    dimensions: int | None = None  # None: as many as the model has
    request_id: str = field(default_factory=new_id)
    owner: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is an input with nothing in it, or none at all."""
        return not self.inputs or not all(self.inputs)

    @property
    def size(self) -> int:
        """UTF-8 bytes of all inputs; a token id counts as so many as tokens mostly have."""
        return sum(map(_size, self.inputs))

    def check(self) -> None:
        """Raises BadRequest when there are too many inputs, or fewer than one dimension."""
        if len(self.inputs) > MOST_INPUTS:
            raise BadRequest(f"input has {len(self.inputs)} entries, and may have {MOST_INPUTS}.", param="input")
        if self.dimensions is not None and (type(self.dimensions) is not int or self.dimensions < 1):
            raise BadRequest("dimensions has to be a whole number, at least 1.", param="dimensions")

    def encode(self) -> bytes:
        return pack(_flat(self))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises BadRequest when the map is of a wrong shape."""
        try:
            raw = unpack(data)
            found = cls(**_known(cls, raw) | {"inputs": tuple(_input(one) for one in raw["inputs"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadRequest(f"The stored request cannot be read: {error!r}.") from error
        found.check()
        return found


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request for what a model's tokenizer says."""

    JOB: ClassVar[str] = "tokens"
    KINDS: ClassVar[tuple[str, ...]] = ("chat", "embedding")
    ROOM: ClassVar[int] = 1
    BESIDE: ClassVar[bool] = True
    OPS: ClassVar[tuple[str, ...]] = ("tokenize", "detokenize", "count", "info")
    keep: ClassVar[bool] = False
    empty: ClassVar[bool] = False  # nothing has no tokens

    op: str
    of: ChatRequest  # the messages or the prompt (of detokenize the ids; of info neither), the model, and who asks
    add_special_tokens: bool = True  # those that the tokenizer puts around a text
    add_generation_prompt: bool = True  # behind messages, where an answer would begin
    strings: bool = False  # each token as the vocabulary writes it, too

    @property
    def model(self) -> str:
        return self.of.model

    @property
    def request_id(self) -> str:
        return self.of.request_id

    @property
    def owner(self) -> str:
        return self.of.owner

    @property
    def size(self) -> int:
        """As that of what would be answered."""
        return self.of.size

    def check(self) -> None:
        """Raises BadRequest when there is no such thing to ask."""
        if self.op not in self.OPS:
            raise BadRequest(f"A tokenizer cannot {self.op!r:.40}.")

    def encode(self) -> bytes:
        flags = {name: getattr(self, name) for name in ("add_special_tokens", "add_generation_prompt", "strings")}
        return pack({"op": self.op, "of": self.of.encode()} | flags)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises BadRequest when the map is of a wrong shape."""
        try:
            raw = unpack(data)
            found = cls(**_known(cls, raw) | {"of": ChatRequest.decode(raw["of"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadRequest(f"The stored request cannot be read: {error!r}.") from error
        found.check()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What the `jobs` worker is asked to do; a job is a dataclass under this one, and its answer a frame's `data`.

    A job adds its own fields, which are what msgpack knows, gives `JOB` a name, and has its function in `workers.jobs`.
    """

    JOB: ClassVar[str]
    KINDS: ClassVar[tuple[str, ...]] = (JOBS,)
    ROOM: ClassVar[int] = 8  # as of texts for vectors: a job may be about many
    BESIDE: ClassVar[bool] = False
    keep: ClassVar[bool] = False
    empty: ClassVar[bool] = False
    model: ClassVar[str] = JOBS

    request_id: str = field(default_factory=new_id)
    owner: str = ""

    @property
    def size(self) -> int:
        """Bytes of all that it carries."""
        return len(self.encode())

    def check(self) -> None:
        """Raises BadRequest when a value is none that the job can have."""

    def encode(self) -> bytes:
        return pack(_flat(self))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises BadRequest when the map is of a wrong shape."""
        try:
            found = cls(**_known(cls, unpack(data)))
            found.check()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadRequest(f"The stored request cannot be read: {error!r}.") from error
        return found


Request = ChatRequest | EmbedRequest | TokenRequest | JobRequest


def wrong_kind(request: Request) -> BadRequest:
    """What is said when a model cannot do a request of this kind, by its name."""
    if request.model == JOBS:
        return BadRequest(f"{JOBS} is no model: it is the worker that computes the leaderboard.", param="model")
    if isinstance(request, EmbedRequest):
        return BadRequest(f"{request.model} is a model that answers and has no embeddings to give.", param="model")
    return BadRequest(f"{request.model} gives embeddings and cannot answer. Use /v1/embeddings.", param="model")


@dataclass(frozen=True, slots=True)
class Frame:
    """A piece of an answer, numbered from 0. The one with `end` is the last."""

    request_id: str
    seq: int
    epoch: int  # how many workers have held the request so far; more after a restart of Redis, and never fewer
    text: str = ""
    kind: str = "text"  # text, reasoning or tool
    logprobs: Sequence[Mapping[str, Any]] | None = None  # of each token, see `workers.engine.TokenLogprob`
    data: Any = None
    end: Mapping[str, Any] | None = None  # reason, usage, timings, error
    usage: Sequence[int] | None = None  # tokens of the prompt, and of the answer with this frame

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
        if self.usage is not None:
            frame["usage"] = self.usage
        return bytes(msgpack.packb(frame))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        return cls.of(unpack(data))

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """From the map that was in a frame's bytes."""
        return cls(**_known(cls, raw))


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a worker says about a model; kept after the worker has gone."""

    name: str
    state: str = "loading"  # loading, ready, failed; a card without a living worker reads as gone
    progress: int = 0  # percent, while loading
    why: str = ""  # one sentence, when failed
    kind: str = "chat"  # or embedding; jobs: no model, and in no list of them
    parent: str = ""
    context: int = 0  # tokens, prompt and answer together
    abilities: tuple[str, ...] = ()
    licence: str = ""
    description: str = ""
    organisation: str = ""
    link: str = ""  # a page about it
    defaults: Mapping[str, Any] = field(default_factory=dict)  # what the page's controls begin with
    rank: int = 0  # its place among models of one state: real ones come before those in the box

    def encode(self) -> bytes:
        return pack(asdict(self))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        raw = unpack(data)
        return cls(**_known(cls, raw) | {"abilities": tuple(raw.get("abilities", ()))})


def _message(raw: Mapping[str, Any]) -> Message:
    if raw["role"] not in ROLES:
        raise BadRequest(f"There is no role {str(raw['role'])[:40]!r}; a message's is one of {', '.join(ROLES)}.")
    more = {key: str(raw[key]) for key in ("name", "tool_call_id") if raw.get(key)}
    return Message(str(raw["role"]), str(raw["content"]), tool_calls=tuple(raw.get("tool_calls", ())), **more)


def _prompt(raw: Any) -> str | tuple[int, ...] | None:
    if raw is None or isinstance(raw, str):
        return raw
    if any(type(i) is not int or not 0 <= i <= TOKEN_ID for i in raw):
        raise BadRequest("The prompt holds something that is no token id.", param="prompt")
    return tuple(raw)


def _input(raw: Any) -> str | tuple[int, ...]:
    if isinstance(raw, str):
        return raw
    if any(type(i) is not int or not 0 <= i <= TOKEN_ID for i in raw):
        raise BadRequest("input holds something that is no token id.", param="input")
    return tuple(raw)


def _size(prompt: str | tuple[int, ...]) -> int:
    return len(prompt.encode()) if isinstance(prompt, str) else TOKEN_BYTES * len(prompt)


@cache
def _names(cls: type) -> frozenset[str]:
    return frozenset(f.name for f in fields(cls))


def _known(cls: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    names = _names(cls)
    return {key: value for key, value in raw.items() if key in names}


def _flat(one: Any) -> dict[str, Any]:
    """The fields of a dataclass as they are. `asdict` copies all that is in them, token by token."""
    return {name: getattr(one, name) for name in _names(one.__class__)}
