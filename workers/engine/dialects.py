"""How models write the calls of tools: for the parser that finds them, and as rules of a grammar for an answer that must call.

Most open models have one of these: Hermes' and Qwen's, Qwen3-Coder's XML, Llama 3.1's JSON, Mistral's list. Which one, the
model's chat template says. Knows no tokens and no requests.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker.errors import BadRequest
from workers.engine.structure import JSON_FORM

Map = dict[str, Any]

CALL, CALLED = "<tool_call>", "</tool_call>"
LISTED, ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"  # Mistral's; control tokens
CALLS = 16  # that one answer may be made to have; a weak model would call for ever
LLAMA_FORM = re.compile(r'\{"name": [^"{}]*, "parameters": ')  # as its template tells the model
# A parameter without the blanks around it. Each character is tried once, whatever a model writes.
VALUE = r"(?:[^\s<]++|<(?!/parameter>)|\s++(?!</parameter>))*+"
ANY: Map = {"repeats": True, "optional": True}


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to write calls."""

    field: Map  # for transformers' ResponseParser
    json: bool = False  # what the parser finds is left as it is: calls as JSON objects, with the arguments last
    opening: str = ""  # what stands before it
    closing: str = ""  # and behind it; "": it goes on to the end of the answer
    around: tuple[str, str] | None = ("", "")  # each call in a grammar; None: there can be none
    between: tuple[str, str | None, str] = ("", "\n", "")  # before all, between two (None: one at most), behind all
    key: str = "arguments"
    lead: str = ""  # control tokens, which no grammar allows: an answer that must call is read as if it began with them

    def sample(self) -> str:
        """An answer that is a call of `a`; "" if none can be forced."""
        if self.around is None:
            return ""
        call = f'{{"name": "a", "{self.key}": {{}}}}' if self.json else f"{CALL}\n<function=a>\n</function>\n{CALLED}"
        return self.lead + self.between[0] + self.around[0] + call + self.around[1] + self.between[2]

    def rules(self, functions: Sequence[Mapping[str, Any]], parallel: bool) -> list[str]:
        """Rules in Lark's syntax; `calls` is what the answer has to be.

        Raises:
            BadRequest: no answer can be made to call in this way.
        """
        if self.around is None:
            raise BadRequest(
                "This model writes its calls with control tokens, which tool_choice cannot force. Leave it out.",
                param="tool_choice",
            )
        before, joint, behind = map(json.dumps, self.between)
        many = f"({joint} call){{0,{CALLS - 1}}}" if parallel and self.between[1] is not None else ""
        found = [f"calls: {before} call {many} {behind}", "call: " + " | ".join(f"c{i}" for i in range(len(functions)))]
        for i, function in enumerate(functions):
            found += (self._json if self.json else _xml)(str(i), function)
        return found

    def _json(self, i: str, function: Mapping[str, Any]) -> list[str]:
        before, behind = self.around or ("", "")
        head = json.dumps(f'{before}{{"name": {json.dumps(function["name"])}, "{self.key}": ')
        return [
            f"c{i}: {head} a{i} {json.dumps('}' + behind)}",
            f"a{i}: {_value({'type': 'object'} | _schema(function))}",
        ]


def _xml(i: str, function: Mapping[str, Any]) -> list[str]:
    """Each parameter by itself: texts as they are, all else as JSON."""
    schema = _schema(function)
    needed, parts, rules = schema.get("required") or (), [], []
    for k, (name, wanted) in enumerate((schema.get("properties") or {}).items()):
        rule, wanted = f"p{i}_{k}", wanted if isinstance(wanted, Mapping) else {}
        parts.append(rule if name in needed else f"{rule}?")
        choices = wanted.get("enum") or ()
        if choices and all(isinstance(choice, str) for choice in choices):
            rules.append(f"v{rule}: " + " | ".join(_quote(f"{choice}\n</parameter>\n") for choice in choices))
        elif wanted.get("type", "string") == "string":
            rules.append(f'v{rule}[suffix="\\n</parameter>\\n"]: /(.|\\n)*/')
        else:
            shared: Map = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
            rules += [f'v{rule}: j{rule} "\\n</parameter>\\n"', f"j{rule}: {_value({**wanted, **shared})}"]
        rules.append(f"{rule}: {_quote(f'<parameter={name}>' + chr(10))} v{rule}")
    head = json.dumps(f"{CALL}\n<function={function['name']}>\n")
    return [f'c{i}: {head} {" ".join(parts)} "</function>\\n{CALLED}"', *rules]


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _schema(function: Mapping[str, Any]) -> Map:
    return dict(function.get("parameters") or {})


def _value(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_FORM})}"


HERMES = Dialect(
    ANY | {"open": CALL, "close": CALLED, "content": "text"},
    json=True,
    opening=CALL,
    closing=CALLED,
    around=(f"{CALL}\n", f"\n{CALLED}"),
)
QWEN_XML = Dialect(  # Qwen3-Coder's and Qwen3.5's; as in transformers.cli.serving.utils, but VALUE
    ANY
    | {
        "open_pattern": r"<tool_call>\s*<function=(?P<name>[^>\n]+)>",
        "close_pattern": r"</function>\s*</tool_call>",
        "content": "xml-inline",
        "content_args": {"tag_pattern": rf"<parameter=(?P<key>[^>\n]+)>\s*+(?P<value>{VALUE})\s*+</parameter>"},
        "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
    }
)
LLAMA = Dialect(
    ANY | {"open_pattern": r'\A\s*(?=\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:)', "content": "text"},
    json=True,
    between=("", None, ""),
    key="parameters",
)
MISTRAL = Dialect(
    ANY | {"open": LISTED, "content": "text"}, json=True, opening=LISTED, between=("[", ", ", "]"), lead=LISTED
)
MISTRAL_NAMED = Dialect(  # since version 11 of its tokenizer
    ANY
    | {
        "open_pattern": r"\[TOOL_CALLS\]\s*(?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]",
        "close_pattern": r"(?=\[TOOL_CALLS\])",
        "content": "json",
        "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
    },
    around=None,
)


def find(template: str, render: Callable[[], str]) -> Dialect | None:
    """The one that a chat template knows.

    Args:
        render: gives a conversation with a tool as the template writes it.
    """
    if CALL in template:
        try:
            written = render()
        except BadRequest:
            written = ""
        if CALL in written:
            return QWEN_XML if "<function=" in written else HERMES
    if LISTED in template:
        return MISTRAL_NAMED if ARGUMENTS in template else MISTRAL
    return LLAMA if LLAMA_FORM.search(template) else None
