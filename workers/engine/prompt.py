"""A request's conversation as token ids, by the tokenizer's own chat template.

What comes with a request is text and nothing else: "<|im_end|>" in a message, a tool or a template's argument is
encoded as the characters that it is, never as the control token of that name. Only the template writes control tokens.
Knows no engine.
"""

import inspect
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from broker.errors import BadRequest
from broker.messages import ChatRequest, Message

STAND_IN = re.compile("\ue000[0-9a-f]{16}\\d+\ue001")
TOOL = {"type": "function", "function": {"name": "a", "description": "b", "parameters": {"type": "object"}}}


class Prompter:
    """Renders and encodes conversations for one model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Looks at the tokenizer's control tokens once; keeps it."""
        self._tokenizer: Any = tokenizer
        added = self._tokenizer.added_tokens_decoder
        self._control = {token.content: i for i, token in added.items() if token.special and token.content}
        longest_first = sorted(self._control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        # A control token may swallow the blanks beside it, as the tokenizer itself would let it.
        blanks = {token.content: (token.lstrip * r"\s*", token.rstrip * r"\s*") for token in added.values()}
        self._cut = re.compile(
            "|".join(f"{blanks[t][0]}({re.escape(t)}){blanks[t][1]}" for t in longest_first) or r"(?!)"
        )
        self._plain: Tokenizer | None = None  # for what stands between control tokens
        self._whole: Tokenizer | None = None  # for a text by itself
        settings = set(inspect.signature(self._tokenizer.apply_chat_template).parameters) - {"documents"}
        self._reserved = settings | {"messages"} | set(self._tokenizer.special_tokens_map)

    def encode(self, request: ChatRequest) -> list[int]:
        """The ids of `write`."""
        return self.write(request)[0]

    def write(self, request: ChatRequest, *, begin: bool = True) -> tuple[list[int], str]:
        """The ids of the conversation, up to where the answer begins or, in a continued message, goes on; of a prompt its own.

        Without `begin` they end behind the last message.

        Beside them the text that the template wrote, in which control strings that somebody else wrote are stand-ins.

        Raises:
            BadRequest: the model's template refuses the request or does not know tools, or the last message is not
                one that can be continued.
        """
        if request.prompt is not None:
            ids = self.encode_text(request.prompt) if isinstance(request.prompt, str) else list(request.prompt)
            return ids, ""
        if reserved := sorted(self._reserved & request.template_kwargs.keys()):
            raise BadRequest(f"chat_template_kwargs cannot set {', '.join(reserved)}. Leave that out.")
        if request.tools and not self._knows_tools:
            raise BadRequest("This model's chat template does not know tools. Leave them out, or pick another model.")
        messages, begun = _begun(request.messages) if request.continue_final_message else (request.messages, "")
        written: dict[str, str] = {}  # stand-in -> the control string that was written
        nonce = secrets.token_hex(8)  # nobody can write a stand-in of their own

        def hide(match: re.Match[str]) -> str:
            stand_in = f"\ue000{nonce}{len(written)}\ue001"
            written[stand_in] = match[0]
            return stand_in

        def hidden(text: str) -> str:
            return self._pattern.sub(hide, text)

        try:
            turns, tools, kwargs = _mapped(
                hidden, ([_turn(m) for m in messages], list(request.tools), dict(request.template_kwargs))
            )
        except RecursionError as error:
            raise BadRequest("A tool, a tool call or chat_template_kwargs is nested too deep.") from error
        # What was begun follows where an answer would begin, so an answer goes on as if it had never been cut.
        begin = begin or request.continue_final_message
        text = self.render(turns, tools, kwargs, begin=begin) + hidden(begun)
        return (self._encode_apart(text, written) if written else self._encode(text)), text

    def with_tool(self) -> str:
        """A conversation with a tool, as the template writes it; raises BadRequest when it refuses."""
        return self.render([{"role": "user", "content": "a"}], [TOOL])

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text without a template, and the tokens that the tokenizer puts around every text, as its start.

        vLLM's completions do the same, but take control strings in the text for control tokens. Here whoever wants
        those sends token ids.
        """
        if not self._pattern.search(text):
            return list(self._tokenizer.encode(text, add_special_tokens=True, verbose=False))
        if self._whole is None:
            self._whole = _without_control(self._tokenizer.backend_tokenizer, apart=False)
        return list(self._whole.encode(text, add_special_tokens=True).ids)

    def render(
        self,
        turns: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        begin: bool = True,
    ) -> str:
        """The conversation as the template writes it, up to where the answer begins or, without `begin`, to its own end.

        Raises:
            BadRequest: the model's template refuses it.
        """
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    turns, tools=list(tools) or None, add_generation_prompt=begin, tokenize=False, **kwargs or {}
                )
            )
        except TemplateError as error:
            raise BadRequest(f"This model's chat template refuses the messages: {error}") from error
        except Exception as error:  # a template is a program: it can fail in any way
            raise BadRequest(f"This model's chat template cannot write the messages: {error!r}") from error

    @cached_property
    def _knows_tools(self) -> bool:
        """Whether tools change anything: many templates pass over them in silence."""
        turns = [{"role": "user", "content": "a"}]
        try:
            return self.render(turns, [TOOL]) != self.render(turns)
        except BadRequest:
            return True  # it says itself what is wrong, when it gets the real ones

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def _encode_apart(self, text: str, written: Mapping[str, str]) -> list[int]:
        """Encodes what lies between the control tokens apart from them; those in `text` are all the template's.

        That is what the tokenizer would do, but with the stand-ins turned back to what was written, and every control
        string in it taken as plain characters.
        """

        def plain(part: str) -> list[int]:
            return self._encode_plain(STAND_IN.sub(lambda m: written.get(m[0], m[0]), part))

        ids: list[int] = []
        end = 0
        for match in self._cut.finditer(text):
            ids += plain(text[end : match.start()])
            ids.append(self._control[match[match.lastindex or 0]])
            end = match.end()
        return ids + plain(text[end:])

    def _encode_plain(self, text: str) -> list[int]:
        if self._plain is None:  # made when first needed: it is as large as the tokenizer
            self._plain = _without_control(self._tokenizer.backend_tokenizer)
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def _turn(message: Message) -> dict[str, Any]:
    """What a template gets: OpenAI's form, but a call's arguments as a map, since templates write them themselves.

    Source: transformers' documentation, "Tool use": "arguments" is a dict, not a string of JSON.
    """
    turn = message.to_map()
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    return turn


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return dict(call)  # a model wrote it, and it is what it is
    return {**call, "function": {**function, "arguments": arguments}}


def _begun(messages: Sequence[Message]) -> tuple[Sequence[Message], str]:
    """The messages before the last one, and what that one says so far."""
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or last.tool_calls:
        raise BadRequest("continue_final_message needs a last message that is the assistant's, without tool calls.")
    if len(messages) == 1:
        raise BadRequest("continue_final_message needs a message before the one that is to be continued.")
    return messages[:-1], last.content


def _mapped(change: Callable[[str], str], value: Any) -> Any:
    """A copy of maps and lists with every string in them changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(change, key): _mapped(change, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(change, inner) for inner in value]
    return value


def _without_control(tokenizer: Tokenizer, *, apart: bool = True) -> Tokenizer:
    """A copy that takes control strings as plain characters and, for parts, adds no space before one that is not the first."""
    state = json.loads(tokenizer.to_str()) | {"truncation": None, "padding": None}
    if apart and (state.get("pre_tokenizer") or {}).get("prepend_scheme") == "first":
        state["pre_tokenizer"]["prepend_scheme"] = "never"
    plain = Tokenizer.from_str(json.dumps(state))
    plain.encode_special_tokens = True
    return plain
