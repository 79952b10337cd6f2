"""OpenAI's chat completions on the wire: what is sent, and what comes back as pieces.

Knows JSON and events, no connection. What comes from the server is not trusted: whatever shape it has, it ends as
pieces or as one of `WRONG`.
"""

import codecs
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from broker.errors import BadRequest, UpstreamFailed
from broker.messages import INT, ChatRequest, Sampling, Structure
from workers.engine import Piece, TokenLogprob

WRONG = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""What reading a document of a wrong shape raises."""

EVENT_BYTES = 1 << 20  # one event; twenty alternatives to each of some tokens are a few KiB
LOWEST = -9999.0  # stands for the logarithm of 0, as at OpenAI; JSON has no infinity

SAMPLING = (  # fields that have the same name there
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_tokens",
    "min_tokens",
    "ignore_eos",
    "seed",
    "stop",
    "stop_token_ids",
)
DISPENSABLE: Mapping[str, str] = {  # what a server may refuse without the answer being refused: its name there, or ""
    "stream_options": "",  # without it the usage may be missing
    "seed": "",  # the site always draws one
    "max_tokens": "max_completion_tokens",  # OpenAI's reasoning models know only this one
}
STRUCTURES: Mapping[str, Callable[[str], dict[str, Any]]] = {  # `structured_outputs` is vLLM's, beside it SGLang's name
    "json_schema": lambda schema: {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": json.loads(schema), "strict": True},
        }
    },
    "json_object": lambda _: {"response_format": {"type": "json_object"}},
    "regex": lambda regex: {"structured_outputs": {"regex": regex}, "regex": regex},
    "grammar": lambda grammar: {"structured_outputs": {"grammar": grammar}, "ebnf": grammar},
    "choice": lambda choices: {
        "structured_outputs": {"choice": json.loads(choices)},
        "ebnf": "root ::= " + " | ".join(json.dumps(choice) for choice in json.loads(choices)),
    },
}
FINISHES = {"length", "tool_calls", "content_filter"}  # every other reason is a stop, but for:
FAILED = {"error", "abort", "insufficient_system_resource"}

LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # at the very end it may be half of \r\n


def body(request: ChatRequest, upstream: str, unsupported: Collection[str] = ()) -> dict[str, Any]:
    """The request in OpenAI's form. What has its default is left out, since strict servers refuse names they do not know.

    Args:
        upstream: the model's name there.
        unsupported: what of `DISPENSABLE` this server has refused before.

    Raises:
        BadRequest: a parameter that no such server takes.
    """
    if request.prompt is not None:
        raise BadRequest(f"{request.model} runs on another server, which is only asked for chats.", param="prompt")
    sampling, default = request.sampling, Sampling()
    if sampling.prompt_logprobs is not None:
        raise BadRequest(f"{request.model} runs on another server, which gives no prompt_logprobs. Leave it out.")
    found: dict[str, Any] = {
        "model": upstream,
        "messages": [message.to_map() for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
    }
    found |= {n: value for n in SAMPLING if (value := getattr(sampling, n)) != getattr(default, n)}
    if sampling.logit_bias:
        found["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias}
    if sampling.logprobs is not None:
        found |= {"logprobs": True} | ({"top_logprobs": sampling.logprobs} if sampling.logprobs else {})
    if sampling.structure:
        found |= _structure(sampling.structure)
    if request.tools:
        found["tools"] = list(request.tools)
        if request.must_call:
            found["tool_choice"] = _choice(request.must_call)
        if not request.parallel_tool_calls:
            found["parallel_tool_calls"] = False
    if request.template_kwargs:
        found["chat_template_kwargs"] = dict(request.template_kwargs)
    if request.continue_final_message:
        found |= {"continue_final_message": True, "add_generation_prompt": False}
    for name in unsupported:
        value = found.pop(name, None)
        if value is not None and DISPENSABLE[name]:
            found[DISPENSABLE[name]] = value
    return found


def _structure(structure: Structure) -> dict[str, Any]:
    try:
        return STRUCTURES[structure.kind](structure.value)
    except WRONG:
        raise BadRequest(f"The structure {structure.kind} cannot be read, or a remote model cannot have it.") from None


def _choice(names: Collection[str]) -> str | dict[str, Any]:
    if len(names) > 1:
        return "required"
    return {"type": "function", "function": {"name": next(iter(names))}}


class Events:
    """Server-sent events out of bytes that are cut anywhere. Comments and fields other than data are skipped, and so is
    an event without the empty line behind it.

    Source: the HTML standard, section 9.2.
    """

    def __init__(self) -> None:
        self._rest = b""  # a line that is not complete
        self._data: list[bytes] = []  # of an event that is not complete
        self._size = 0
        self._begun = False

    def feed(self, chunk: bytes) -> list[str]:
        """The events that are complete now; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: an event is larger than EVENT_BYTES.
        """
        found = []
        *lines, self._rest = LINE_END.split(self._rest + chunk)
        for line in lines:
            if not self._begun:
                line, self._begun = line.removeprefix(codecs.BOM_UTF8), True
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._size += len(line)
            elif not line:
                found.append(b"\n".join(self._data).decode(errors="replace"))
                self._data, self._size = [], 0
        if len(self._rest) + self._size > EVENT_BYTES:
            raise ValueError(f"an event of more than {EVENT_BYTES} bytes")
        return [event for event in found if event]


def parse(text: str | bytes) -> Any:
    """JSON with numbers that msgpack can carry; raises some of WRONG."""
    return json.loads(text, parse_int=lambda n: int(n) if len(n) < 19 else float(n), parse_constant=lambda _: LOWEST)


class Reader:
    """Pieces out of the documents of one answer, chunks or a whole completion."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.completion_tokens: int | None = None
        self.finish: str | None = None
        utf16 = codecs.getincrementaldecoder("utf-16-le")  # joins surrogates that come in two texts
        self._halves = {kind: utf16(errors="replace") for kind in ("reasoning", "text")}

    def read(self, document: Any) -> list[Piece]:
        """What a document adds; raises some of WRONG when it is of a wrong shape, UpstreamFailed when it says so."""
        if usage := document.get("usage"):
            self.prompt_tokens, self.completion_tokens = (
                min(max(0, int(usage.get(name) or 0)), INT) for name in ("prompt_tokens", "completion_tokens")
            )
        found = []
        for choice in document.get("choices") or ():
            if choice.get("index"):
                continue  # only one was asked for
            found += self._pieces(choice.get("delta") or choice.get("message") or {}, _logprobs(choice.get("logprobs")))
            if reason := choice.get("finish_reason"):
                if reason in FAILED:
                    raise UpstreamFailed("The server behind this model gave the answer up. Please try again.")
                self.finish = reason if reason in FINISHES else "stop"
        return found

    def rest(self) -> list[Piece]:
        """What was held back, when the answer is at its end."""
        return [Piece(text, kind=kind) for kind, half in self._halves.items() if (text := half.decode(b"", True))]

    def _pieces(self, said: Mapping[str, Any], logprobs: tuple[TokenLogprob, ...]) -> list[Piece]:
        texts = {
            "reasoning": said.get("reasoning_content") or said.get("reasoning"),
            "text": said.get("content") or said.get("refusal"),
        }
        found = [Piece(whole, kind=kind) for kind, text in texts.items() if text and (whole := self._whole(kind, text))]
        if logprobs:
            found[-1:] = [replace(found[-1] if found else Piece(""), logprobs=logprobs)]
        if calls := said.get("tool_calls"):
            data = json.dumps([{"index": i} | call for i, call in enumerate(calls)], ensure_ascii=False)
            found.append(Piece("", kind="tool", data=parse(data.encode(errors="replace"))))
        return found

    def _whole(self, kind: str, text: str) -> str:
        return self._halves[kind].decode(text.encode("utf-16-le", "surrogatepass"))


def _logprobs(raw: Any) -> tuple[TokenLogprob, ...]:
    return tuple(_logprob(token) for token in (raw or {}).get("content") or ())


def _logprob(raw: Mapping[str, Any]) -> TokenLogprob:
    token = raw.get("bytes")
    return TokenLogprob(
        int(raw.get("id", -1)),
        raw["token"].encode(errors="replace") if token is None else bytes(token),
        max(float(raw["logprob"]), LOWEST),
        tuple(_logprob(other) for other in raw.get("top_logprobs") or ()),
    )
