"""A conversation as token ids, by the tokenizer's own chat template.

What people write is text and nothing else: "<|im_end|>" in a message is encoded as the characters that it is, never as
the control token of that name. Only the template writes control tokens. Knows no engine and no requests.
"""

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from broker.errors import BadRequest
from broker.messages import Message


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
        self._plain: Tokenizer | None = None

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the conversation, up to where the answer begins.

        Raises:
            BadRequest: the model's template refuses these messages.
        """
        turns = [{"role": m.role, "content": m.content} for m in messages]
        if not any(self._pattern.search(m.content) for m in messages):
            return self._encode(self.render(turns))
        return self._encode_hostile(turns)

    def render(self, turns: Sequence[dict[str, str]]) -> str:
        """The conversation as the template writes it.

        Raises:
            BadRequest: the model's template refuses these messages.
        """
        try:
            return str(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
        except TemplateError as error:
            raise BadRequest(f"This model's chat template refuses the messages: {error}") from error

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def _encode_hostile(self, turns: Sequence[dict[str, str]]) -> list[int]:
        """Each control string in a message is rendered as a stand-in, so that what the cut finds is the template's.

        The text between the template's control tokens is then encoded as the tokenizer would, but with the
        stand-ins turned back and every control string taken as plain characters.
        """
        stand_ins: dict[str, str] = {}  # stand-in -> what was written
        nonce = secrets.token_hex(8)  # nobody can write a stand-in of their own

        def hide(match: re.Match[str]) -> str:
            stand_in = f"\ue000{nonce}{len(stand_ins)}\ue001"
            stand_ins[stand_in] = match[0]
            return stand_in

        text = self.render([turn | {"content": self._pattern.sub(hide, turn["content"])} for turn in turns])
        back = re.compile(f"\ue000{nonce}\\d+\ue001")
        ids: list[int] = []
        end = 0
        for match in self._cut.finditer(text):
            ids += self._encode_plain(back.sub(lambda m: stand_ins[m[0]], text[end : match.start()]))
            ids.append(self._control[match[match.lastindex or 0]])
            end = match.end()
        return ids + self._encode_plain(back.sub(lambda m: stand_ins[m[0]], text[end:]))

    def _encode_plain(self, text: str) -> list[int]:
        if self._plain is None:  # made when first needed: it is as large as the tokenizer
            self._plain = _without_control(self._tokenizer.backend_tokenizer)
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def _without_control(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that takes control strings as plain characters and adds no space before a text that is not the first."""
    state = json.loads(tokenizer.to_str()) | {"truncation": None, "padding": None}
    if (state.get("pre_tokenizer") or {}).get("prepend_scheme") == "first":
        state["pre_tokenizer"]["prepend_scheme"] = "never"
    plain = Tokenizer.from_str(json.dumps(state))
    plain.encode_special_tokens = True
    return plain
