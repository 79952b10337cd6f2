"""What programs get from /v1: frames as OpenAI's objects, whole or in chunks, and errors.

Knows no HTTP. Where tool calls and reasoning are told apart, they come as frames of their own kind, and go out from here.
"""

import base64
import json
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol

from broker.errors import FleetError, NoSuchModel, from_map
from broker.messages import ChatRequest, Frame
from broker.registry import ModelState

JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
LOWEST = -9999.0  # JSON has no infinity; vLLM's value
STARTED = time.time()  # of this process: for models of which Redis does not know since when they are there
REASONS = ("stop", "length", "tool_calls", "content_filter")

Map = dict[str, Any]
Token = Mapping[str, Any]


@dataclass(slots=True)
class Said:
    """Some of an answer, or all of it."""

    text: str = ""
    reasoning: str = ""
    calls: list[Map] = field(default_factory=list)  # deltas in OpenAI's form
    tokens: list[Token] = field(default_factory=list)
    prompt: list[Token] = field(default_factory=list)  # tokens of the prompt; the first one has no logprob
    finish: str | None = None
    usage: tuple[int, int] = (0, 0)  # tokens of the prompt, and of the answer so far

    def add(self, more: "Said") -> None:
        """What comes next."""
        self.text += more.text
        self.reasoning += more.reasoning
        self.calls += more.calls
        self.tokens += more.tokens
        self.prompt += more.prompt
        self.finish, self.usage = more.finish, more.usage


class Progress:
    """One answer's frames as what is new in them, also when frames are replaced (see `streams.Reader`).

    What is written again is the same text, since a seed decides it, but may be cut into frames elsewhere.
    """

    def __init__(self) -> None:
        self._ends: list[tuple[int, int, int]] = []  # characters, tokens and `_length` of calls up to a frame's end
        self._told = (0, 0, 0)
        self._scored = False

    def take(self, frame: Frame) -> Said:
        """What this frame adds; raises the error that the answer ended with."""
        end = frame.end or {}
        if error := end.get("error"):
            raise from_map(error)
        del self._ends[frame.seq :]
        characters, tokens, called = self._ends[-1] if self._ends else (0, 0, 0)
        told = self._told
        text = frame.text[max(0, told[0] - characters) :]
        scores = list(frame.logprobs or ())[max(0, told[1] - tokens) :]
        calls = list(frame.data or ()) if frame.kind == "tool" else []
        ends = (characters + len(frame.text), tokens + len(frame.logprobs or ()), called + sum(map(_length, calls)))
        self._ends.append(ends)
        self._told = max(told[0], ends[0]), max(told[1], ends[1]), max(told[2], ends[2])
        said = Said(tokens=scores)
        if frame.kind == "reasoning":
            said.reasoning = text
        else:
            said.text = text
        if frame.kind == "tool":
            said.calls = _behind(calls, told[2] - called)
        elif frame.data is not None and not self._scored and isinstance(frame.data, Mapping):
            said.prompt, self._scored = _prompt(frame.data), True
        if frame.usage is not None:
            said.usage = frame.usage[0], frame.usage[1]
        if frame.end is not None:
            counts = end.get("usage") or {}
            said.usage = int(counts.get("prompt_tokens", 0)), int(counts.get("completion_tokens", 0))
            said.finish = end["reason"] if end.get("reason") in REASONS else "stop"
        return said


class Form(Protocol):
    """How one kind of request wants its choices."""

    prefix: str
    whole_object: str
    chunk_object: str

    def whole(self, index: int, said: Said) -> Map:
        """A finished choice."""
        ...

    def chunk(self, index: int, said: Said) -> Map:
        """What is new in a choice."""
        ...


class ChatForm:
    """/v1/chat/completions."""

    prefix, whole_object, chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._begun: set[int] = set()

    def whole(self, index: int, said: Said) -> Map:
        calls = _join_calls(said.calls)
        message: Map = {"role": "assistant", "content": said.text if said.text or not calls else None, "refusal": None}
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": self._scores(said),
            "finish_reason": said.finish,
        }

    def chunk(self, index: int, said: Said) -> Map:
        delta: Map = {}
        if index not in self._begun:
            self._begun.add(index)
            delta["role"] = "assistant"
        if said.reasoning:
            delta["reasoning_content"] = said.reasoning
        if said.calls:
            delta["tool_calls"] = said.calls
        if said.text or ("role" in delta and len(delta) == 1):
            delta["content"] = said.text
        return {"index": index, "delta": delta, "logprobs": self._scores(said), "finish_reason": said.finish}

    def _scores(self, said: Said) -> Map | None:
        if not self._logprobs or not (said.tokens or said.finish):
            return None
        return {"content": [_chat_logprob(token) for token in said.tokens], "refusal": None}


class CompletionForm:
    """/v1/completions."""

    prefix, whole_object, chunk_object = "cmpl-", "text_completion", "text_completion"

    def __init__(self, requests: Sequence[ChatRequest], *, echo: bool, logprobs: int | None) -> None:
        self._requests, self._echo, self._logprobs = requests, echo, logprobs
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}

    def whole(self, index: int, said: Said) -> Map:
        return self.chunk(index, said)

    def chunk(self, index: int, said: Said) -> Map:
        text = said.text
        if self._echo and index not in self._begun:
            prompt = self._requests[index].prompt
            text = (prompt if isinstance(prompt, str) else _text(said.prompt)) + text
        self._begun.add(index)
        return {"index": index, "text": text, "logprobs": self._scores(index, said), "finish_reason": said.finish}

    def _scores(self, index: int, said: Said) -> Map | None:
        if self._logprobs is None:
            return None
        tokens = [*(said.prompt if self._echo else ()), *said.tokens]
        texts = [_spell(token) for token in tokens]
        at, offsets = self._offsets.get(index, 0), []
        for text in texts:
            offsets.append(at)
            at += len(text)
        self._offsets[index] = at
        return {
            "tokens": texts,
            "token_logprobs": [_logprob(token) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> dict[str, float | None] | None:
        """The likeliest tokens and, as OpenAI has it, the one that was picked; the likeliest of those of the same text."""
        if token["logprob"] is None:
            return None
        found: dict[str, float | None] = {}
        for other in (*token.get("top", ()), token):
            found.setdefault(_spell(other), _logprob(other))
        return found


class Paper:
    """The sheet that the answers to one request are written on, and what they used."""

    def __init__(self, form: Form, requests: Sequence[ChatRequest], per_prompt: int, n: int) -> None:
        """Of each `per_prompt` requests in a row, which are to the same prompt, the best `n` are shown."""
        first = requests[0]
        self._form, self._per_prompt, self._n = form, per_prompt, n
        self._head: Map = {"id": form.prefix + first.request_id, "created": int(time.time()), "model": first.model}
        self._counts = [(0, 0)] * len(requests)

    @property
    def usage(self) -> Map:
        """Of what has been read so far."""
        return usage(self._counts, self._per_prompt)

    def note(self, index: int, said: Said) -> None:
        """Some of an answer has been read."""
        self._counts[index] = said.usage

    def whole(self, answers: Sequence[Said]) -> Map:
        """The object of a request that is not streamed."""
        if self._per_prompt > self._n:
            groups = (answers[i : i + self._per_prompt] for i in range(0, len(answers), self._per_prompt))
            answers = [said for group in groups for said in best(group, self._n)]
        return {
            **self._head,
            "object": self._form.whole_object,
            "choices": [self._form.whole(i, said) for i, said in enumerate(answers)],
            "usage": self.usage,
            "system_fingerprint": None,
        }

    def chunks(self, index: int, said: Said) -> list[Map]:
        """What is new in one choice; several when it is of several calls, since clients read one from a chunk."""
        *before, last = _by_call(said.calls) or [[]]
        parts = [*(Said(calls=calls) for calls in before), replace(said, calls=last)]
        head = {**self._head, "object": self._form.chunk_object}
        return [{**head, "choices": [self._form.chunk(index, part)]} for part in parts]

    def last(self) -> Map:
        """The chunk with the usage."""
        return {**self._head, "object": self._form.chunk_object, "choices": [], "usage": self.usage}


def usage(counts: Sequence[tuple[int, int]], per_prompt: int = 1) -> Map:
    """OpenAI's usage: a prompt counts once, however many answers it has.

    The tokens of an answer are those that `logprobs` lists, but for the one that ended it, which counts nowhere.

    Args:
        counts: of each answer: tokens of its prompt, and its own.
        per_prompt: how many answers in a row are to one prompt.
    """
    prompt = sum(max(count for count, _ in counts[i : i + per_prompt]) for i in range(0, len(counts), per_prompt))
    answer = sum(count for _, count in counts)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def best(answers: Sequence[Said], n: int) -> list[Said]:
    """The `n` answers whose tokens are the likeliest on average, the best first."""

    def likelihood(said: Said) -> float:
        return sum(token["logprob"] for token in said.tokens) / len(said.tokens) if said.tokens else LOWEST

    return sorted(answers, key=likelihood, reverse=True)[:n]


def model(state: ModelState) -> Map:
    """One entry of /v1/models."""
    card = state.card
    return {
        "id": card.name,
        "object": "model",
        "created": int(state.since or STARTED),
        "owned_by": "fleetchat",
        "root": card.parent or card.name,
        "parent": card.parent or None,
        "max_model_len": card.context or None,  # vLLM's name; below it OpenRouter's
        "context_length": card.context or None,
        "kind": card.kind,
        "state": state.state,
        "abilities": list(card.abilities),
    }


def embeddings(vectors: Iterable[str], form: str) -> Iterator[bytes]:
    """Each of the vectors (base64 of float32, little-endian) as an entry of `data`, in JSON."""
    for i, vector in enumerate(vectors):
        raw = base64.b64decode(vector)
        value = vector if form == "base64" else struct.unpack(f"<{len(raw) // 4}f", raw)
        yield dump({"object": "embedding", "index": i, "embedding": value})


def embedding_list(entries: Iterable[bytes], model: str, tokens: int) -> bytes:
    """The whole answer in JSON, with the entries that `embeddings` gave."""
    rest = dump({"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    return b'{"object":"list","data":[' + b",".join(entries) + b"]," + rest[1:]


def error(what: FleetError, status: int | None = None) -> Map:
    """OpenAI's error object."""
    status = status or what.status
    kinds = {429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = "model" if isinstance(what, NoSuchModel) else what.param
    return {"error": {"message": str(what), "type": kind, "param": param, "code": what.code}}


def dump(document: Any) -> bytes:
    """As JSON, short."""
    return JSON.encode(document).encode()


def _length(delta: Map) -> int:
    """The characters of a call's delta, its beginning as one."""
    return bool(delta.get("id")) + len((delta.get("function") or {}).get("arguments") or "")


def _behind(deltas: Iterable[Map], told: int) -> list[Map]:
    """What the deltas have behind so many characters."""
    found = []
    for delta in deltas:
        length = _length(delta)
        if told <= 0:
            found.append(delta)
        elif told < length:
            text = delta["function"]["arguments"][told - bool(delta.get("id")) :]
            found.append({"index": delta["index"], "function": {"arguments": text}})
        told -= length
    return found


def _by_call(deltas: Iterable[Map]) -> list[list[Map]]:
    """Neighbours of one call as one delta, each in a list of its own."""
    found = []
    for _, group in groupby(deltas, lambda delta: delta["index"]):
        first, *rest = group
        functions = [delta.get("function") or {} for delta in (first, *rest)]  # a server behind may leave it out
        arguments = "".join(function.get("arguments") or "" for function in functions)
        found.append([first | {"function": functions[0] | {"arguments": arguments}}])
    return found


def _prompt(data: Mapping[str, Any]) -> list[Token]:
    scores = data.get("prompt_logprobs") or ()
    first = {**data.get("prompt_first", {"token_id": 0, "token": []}), "logprob": None}
    return [first if score is None else score for score in scores]


def _spell(token: Token) -> str:
    return bytes(token["token"]).decode(errors="replace")


def _text(tokens: Iterable[Token]) -> str:
    return b"".join(bytes(token["token"]) for token in tokens).decode(errors="replace")


def _logprob(token: Token) -> float | None:
    return None if token["logprob"] is None else max(LOWEST, token["logprob"])


def _chat_logprob(token: Token) -> Map:
    found = _one(token)
    return found | {"top_logprobs": [_one(other) for other in token.get("top", ())]}


def _one(token: Token) -> Map:
    return {"token": _spell(token), "logprob": _logprob(token), "bytes": list(token["token"])}


def _join_calls(deltas: Iterable[Map]) -> list[Map]:
    """Whole calls out of what came of them."""
    calls: dict[int, Map] = {}
    for delta in deltas:
        call = calls.setdefault(
            delta.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        function = delta.get("function") or {}
        call["id"] = delta.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
    return list(calls.values())
