"""Reasoning and tool calls told apart from an answer's text, while it is being written.

In comes the text behind a prompt, in pieces of any size; out go parts, each of one kind. Nothing is shown that may be
the beginning of a marker, and what looked like a call but is none comes out as the text that it is. transformers'
ResponseParser finds the markers: by the model's own response template or, where it has none, by those that most open
models write (`workers.engine.dialects`), if its chat template knows them. Knows no tokens.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_parsing import ResponseParser, parse_response
from transformers.utils.chat_parsing.response_templates import load_response_template

from broker.errors import BadRequest
from broker.messages import ChatRequest, Structure
from workers.engine import dialects
from workers.engine.dialects import Dialect

logger = logging.getLogger("fleetchat.engine")

Map = dict[str, Any]

KINDS = {"reasoning_content": "reasoning", "reasoning": "reasoning", "thinking": "reasoning", "tool_calls": "tool"}
THINK, THOUGHT = "<think>", "</think>"
TEXT: Map = {"content": "text", "optional": True}
REASONING: Map = {"open_pattern": rf"\A\s*{THINK}", "close": THOUGHT, "content": "text", "optional": True}  # at first
_HEAD = r'\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
HEAD = re.compile(r"\s*(?:\[\s*)?" + _HEAD)
NEXT = re.compile(r"[^{]*" + _HEAD)  # behind the arguments of another call, whose object may still have an id
WRONG = (ValueError, TypeError, LookupError, AttributeError, RecursionError)  # from a call of a wrong shape
KNOWN = "Hermes' and Qwen's <tool_call>, Llama 3.1's JSON, Mistral's [TOOL_CALLS]"


@dataclass(frozen=True, slots=True)
class Part:
    """Some of an answer, of one kind."""

    kind: str  # text, reasoning or tool
    text: str = ""
    calls: tuple[Map, ...] = ()  # deltas in OpenAI's form


class Replies:
    """How one model writes reasoning and calls."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, render: Callable[[], str]) -> None:
        """Looks once.

        Args:
            render: gives a conversation with a tool as the chat template writes it.
        """
        own = _own(tokenizer)
        self._anchored = own is not None
        template = str(tokenizer.chat_template or "")
        known = dialects.find(template, render)
        self._dialect = known if own is None or (known and _reads(own, known)) else None  # to force calls in
        self._spec = own or _usual(template, known)
        written = json.dumps(self._spec["fields"], ensure_ascii=False).replace("\\", "")
        added: Mapping[int, Any] = tokenizer.added_tokens_decoder
        self.markers = frozenset(i for i, t in added.items() if t.special and t.content and t.content in written)

    def begin(self, request: ChatRequest, prompt: str) -> "Reply | None":
        """For the answer behind a prompt; None where there is nothing to tell apart."""
        fields = {name: field for name, field in self._spec["fields"].items() if name != "tool_calls" or request.tools}
        if request.prompt is not None or request.sampling.structure is not None or not fields.keys() - {"content"}:
            return None
        prefix = prompt if self._anchored else THINK * self._thinks(request, prompt)
        if request.must_call and self._dialect:
            prefix += self._dialect.lead
        return Reply(self._spec | {"fields": fields}, prefix, request, None if self._anchored else self._dialect)

    def structure(self, request: ChatRequest, prompt: str) -> Structure:
        """The form of an answer that calls what it must.

        Raises:
            BadRequest: it is not known how to write this model's calls.
        """
        thinks = self._thinks(request, prompt)
        if self._dialect is None or (thinks and self._dialect.lead):
            raise BadRequest(
                "This model cannot be made to call a tool: its chat template shows no way to write calls that is known "
                f"here ({KNOWN}). Leave tool_choice out.",
                param="tool_choice",
            )
        functions = {tool["function"]["name"]: tool["function"] for tool in request.tools}
        rules = self._dialect.rules([functions[name] for name in request.must_call], request.parallel_tool_calls)
        if thinks:
            start = ["start: think BREAK calls", f'think[suffix="{THOUGHT}"]: /(.|\\n)*/', 'BREAK: "\\n\\n"']
        else:
            start = ["start: calls"]
        return Structure("tools", "\n".join(start + rules))

    def _thinks(self, request: ChatRequest, prompt: str) -> bool:
        """Whether the prompt ends within a thought."""
        if "reasoning_content" not in self._spec["fields"]:
            return False
        if request.continue_final_message:
            begun = request.messages[-1].content
            return begun.rfind(THINK) > begun.rfind(THOUGHT)
        return prompt.rstrip().endswith(THINK)


class Reply:
    """One answer's text as parts."""

    def __init__(self, spec: Map, prefix: str, request: ChatRequest, dialect: Dialect | None) -> None:
        """`prefix` is what of the prompt belongs to the answer, and may have more before it."""
        self.calls = 0
        self.stopped = False  # the only call that may be is complete
        self._names = {tool["function"]["name"] for tool in request.tools}
        self._request_id = request.request_id
        self._parallel = request.parallel_tool_calls
        self._raw = dialect is not None and dialect.json
        self._opening, self._closing = (dialect.opening, dialect.closing) if dialect and dialect.json else ("", "")
        self._parser: ResponseParser | None = ResponseParser(spec, prefix, tools=[dict(tool) for tool in request.tools])
        self._parts: list[Part] = []
        self._blank = ""  # held back: it is none of the text if a call follows
        self._fresh = any(KINDS.get(event["field"]) == "reasoning" for event in self._parser.initial_events)
        self._call = _Call()
        self._held = ""  # what has been fed and not yet shown, markers too

    def feed(self, text: str) -> list[Part]:
        """The parts that this text makes certain. Nothing more comes once `stopped` is true."""
        if self.stopped:
            return []
        if self._parser is None:
            self._parts = []
            self._say("text", text)
            return self._parts
        return self._take(lambda parser: parser.feed(text), text, self._closing)

    def finish(self) -> list[Part]:
        """What was held back, when no text will follow."""
        if self.stopped:
            return []
        parts = [] if self._parser is None else self._take(lambda parser: parser.finalize()[1], "", "")
        if self._blank and not self.calls:
            parts.append(Part("text", self._blank))
        return parts

    def _take(self, parse: Callable[[ResponseParser], Sequence[Map]], text: str, closing: str) -> list[Part]:
        assert self._parser is not None
        self._parts = []
        self._held += text
        try:
            events = parse(self._parser)
        except WRONG:  # what stands between a call's markers is none
            self._parser, events = None, []
            self._say("text", self._held)
        for event in events:
            if not self.stopped:
                self._event(event, closing)
        return self._parts

    def _event(self, event: Map, closing: str) -> None:
        kind = KINDS.get(event["field"], "text")
        if event["type"] == "region_open":
            self._fresh = self._fresh or kind == "reasoning"
            if kind == "reasoning":
                self._held = ""
        elif event["type"] == "region_chunk" and kind == "tool":
            self._call.add(event["text"])
            if self._raw:
                self._stream()
        elif event["type"] == "region_chunk":
            self._held = self._held[len(event["text"]) :]
            self._say(kind, event["text"])
        elif kind == "tool":
            self._close(event["value"], closing)
            self._call, self._held = _Call(), ""
        elif kind == "reasoning":
            self._blank, self._held, self._fresh = "", "", True

    def _say(self, kind: str, text: str) -> None:
        text = self._blank + text
        if self._fresh:  # the blanks around a thought are the template's
            text = text.lstrip()
        shown = text.rstrip() if self._names or kind == "reasoning" else text
        self._blank = text[len(shown) :]
        if shown:
            self._fresh = False
            self._parts.append(Part(kind, shown))

    def _stream(self) -> None:
        """The arguments as they come, once it is certain whose they are."""
        while not self.stopped:
            call = self._call
            if not call.name:
                head = (NEXT if call.more else HEAD).match(call.body)
                if head is None or head[1] not in self._names:
                    return
                call.name, call.at = head[1], head.end()
                self._open(call.name)
            if text := call.arguments():
                self._delta({"function": {"arguments": text}})
            if self._closing or not call.complete:
                return
            self._call = _Call(call.body[call.at :])  # no mark ends a call, and another one may follow
            self.stopped = not self._parallel

    def _close(self, value: Any, closing: str) -> None:
        if self._call.more and "{" not in self._call.body:
            return  # the end of the last one
        if self._raw and not self._call.name:
            try:
                value = {"function": json.loads(self._call.body)}
            except (ValueError, RecursionError):
                value = None
        if not self._call.name:
            function = value.get("function") if isinstance(value, Mapping) else None
            name = function.get("name") if isinstance(function, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(name, str) or name not in self._names:
                opening = "" if self._call.more else self._opening
                self._say("text", f"{opening}{self._call.body}{closing}" if self._raw else self._call.body)
                return
            arguments = function.get("arguments", function.get("parameters", {}))
            self._open(name)
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            self._delta({"function": {"arguments": text}})
        self.stopped = not self._parallel

    def _open(self, name: str) -> None:
        self._blank = ""
        self.calls += 1
        # The same again where another worker goes on.
        call_id = f"call_{self._request_id}_{self.calls - 1}"
        self._delta({"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}})

    def _delta(self, delta: Map) -> None:
        self._parts.append(Part("tool", calls=({"index": self.calls - 1} | delta,)))


class _Call:
    """What stands between a call's markers, so far."""

    def __init__(self, rest: str | None = None) -> None:
        """`rest` is what came behind another one."""
        self.body = rest or ""
        self.more = rest is not None
        self.name = ""
        self.at = 0  # where in the body the next piece of the arguments begins
        self._depth = 0
        self._quoted = self._escaped = self.complete = False

    def add(self, text: str) -> None:
        self.body += text

    def arguments(self) -> str:
        """What has come of the arguments' object, up to its end."""
        begin = self.at
        while self.at < len(self.body) and not self.complete:
            char = self.body[self.at]
            self.at += 1
            if self._quoted:
                self._quoted = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            else:
                self._quoted = char == '"'
                self._depth += (char in "{[") - (char in "}]")
                self.complete = self._depth == 0
        return self.body[begin : self.at]


def _own(tokenizer: PreTrainedTokenizerBase) -> Map | None:
    """The model's response template, made to refuse no answer for what it lacks."""
    spec = getattr(tokenizer, "response_template", None)
    if spec is None:
        return None
    try:
        load_response_template(spec)
    except ValueError as error:
        logger.warning("the model's response template cannot be used: %s", error)
        return None
    return dict(spec) | {"fields": {name: field | {"optional": True} for name, field in spec["fields"].items()}}


def _reads(own: Map, dialect: Dialect) -> bool:
    """Whether a response template finds the calls that a dialect's grammar allows."""
    try:
        (call,) = parse_response(dialect.sample(), own, prefix="")["tool_calls"]
        return bool(call["function"]["name"] == "a")
    except WRONG:
        return False


def _usual(template: str, dialect: Dialect | None) -> Map:
    """The markers that most open models write, as far as a chat template knows them."""
    fields: Map = {"content": TEXT}
    if THOUGHT in template:
        fields["reasoning_content"] = REASONING
    if dialect is not None:
        fields["tool_calls"] = dialect.field
    return {"start_anchor_pattern": r"\A", "fields": fields}
