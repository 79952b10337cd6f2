"""Which tokens may come next in an answer that has to have a form: JSON of a schema, a regular expression, a choice, a grammar.

In come a `Structure` and, after each step, the token that was picked; out goes -inf on the logits of what may not
follow. llguidance does the parsing. Control tokens are never allowed, end tokens only where the text is complete.
JSON is written compactly: one space may follow a comma or a colon and there is no other white space, for otherwise a
weak model can write blanks for ever.

Nothing that is asked for may harm the worker: a new grammar is first tried out in a process with limits
(`grammar_trial`), and what a step may cost is bounded. Knows no requests and no model, only its tokenizer.
"""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, _lib
from llguidance.gbnf_to_lark import gbnf_to_lark
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from broker.errors import BadRequest
from broker.messages import Structure
from workers.engine import grammar_trial
from workers.engine.hub import first_line

logger = logging.getLogger("fleetchat.engine")

LONGEST = 1 << 16  # characters of a schema, expression or grammar
KEPT = 32  # compiled grammars that are kept: clients send the same schema again and again
LIMITS: dict[str, Any] = {  # of one grammar: mostly under 10 ms a step, and some 40 MB
    "step_lexer_fuel": 20_000,
    "step_max_items": 10_000,
    "max_lexer_states": 50_000,
    "verbose_errors": False,
}
# Tries each character once: while a pattern is looked for, no other thread runs.
GBNF_RULE = re.compile(r"^[^\S\n]*[\w-]+[^\S\n]*::=", re.MULTILINE)
GBNF_WORK = 1 << 22  # rules times characters: its translation can take as many steps, and no trial guards it
TRIALS = 2  # at once
TRIAL_SECONDS = 30  # its limit of processor time ends it much earlier, unless the machine is overloaded
JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
NAMES = {  # as the message of an error calls them
    "json_schema": "response_format's JSON schema",
    "json_object": "response_format json_object",
    "regex": "The regular expression",
    "choice": "The list of choices",
    "grammar": "The grammar",
    "tools": "The tools' parameters",
}
_ADDS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf).astype(
    np.float32
)  # (256, 8): what a byte of the mask adds to the logits of its eight tokens


class Grammars:
    """Compiles structures for one model; safe to use from many threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab: int, end_ids: frozenset[int]) -> None:
        """Keeps the tokenizer; costs nothing before the first structure comes.

        Args:
            vocab: width of the logits, which may be more than the tokenizer has tokens.
            end_ids: the tokens that end an answer.
        """
        self._tokenizer: Any = tokenizer
        self._width = max(vocab, len(self._tokenizer))
        self._end_ids = frozenset(i for i in end_ids if i < self._width)
        self._lock = Lock()
        self._trials = BoundedSemaphore(TRIALS)
        self._made: LLTokenizer | None = None
        self._compiled = lru_cache(KEPT)(self._compile)
        self.words = (self._width + 31) // 32  # of 32 bits, one bit a token
        control = {i for i, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        self.ends = self._bytes(self._end_ids)
        self.allowed = self._bytes(set(self._tokenizer.get_vocab().values()) - control | self._end_ids)

    def compile(self, structure: Structure, said: Sequence[int] = ()) -> "Matcher":
        """A matcher for one answer. Blocks: about 0.1 s for a new structure, and up to seconds for a bad one.

        Args:
            said: the tokens that the answer already has.

        Raises:
            BadRequest: the structure is wrong, too costly, or needs what cannot be enforced; or `said` does not fit it.
        """
        name = NAMES.get(structure.kind)
        if name is None:
            raise BadRequest(f"There is no structure {structure.kind!r}; pick one of {', '.join(NAMES)}.")
        if len(structure.value) > LONGEST:
            raise BadRequest(f"{name} has {len(structure.value)} characters and may have {LONGEST}. Make it shorter.")
        try:
            matcher = Matcher(self, self._compiled(_grammar(structure)).deep_copy())
        except _Unusable as error:
            raise BadRequest(f"{name} cannot be used: {str(error).rstrip('.')}.") from error
        matcher.parser.consume_tokens(list(said))
        if matcher.failed:
            raise BadRequest(f"{name} cannot be used: the answer so far does not fit it.")
        return matcher

    def _compile(self, grammar: str) -> LLMatcher:
        with self._trials:
            _try(grammar)
        matcher = LLMatcher(self._llguidance(), grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        if cause := grammar_trial.fault(matcher):
            raise _Unusable(cause)
        return matcher

    def _llguidance(self) -> LLTokenizer:
        with self._lock:
            if self._made is None:
                backend = getattr(self._tokenizer, "backend_tokenizer", None)
                if backend is None or not self._end_ids:
                    raise _Unusable("this model's tokenizer is of a kind, or has no end token, for structured answers")
                try:
                    self._made = LLTokenizer(
                        _with_control(backend.to_str(), self._end_ids), self._width, sorted(self._end_ids)
                    )
                except ValueError as error:
                    raise _Unusable(f"this model's tokenizer is of an unknown kind ({error})") from error
            return self._made

    def _bytes(self, token_ids: frozenset[int] | set[int]) -> NDArray[np.uint8]:
        """The ids as bits; shape (4 * words,)."""
        bits = np.zeros(32 * self.words, np.uint8)
        bits[list(token_ids)] = 1
        return np.packbits(bits, bitorder="little")


class Matcher:
    """Where one answer is in its structure."""

    __slots__ = ("dead", "grammars", "parser")

    def __init__(self, grammars: Grammars, parser: LLMatcher) -> None:
        self.grammars = grammars
        self.parser = parser
        self.dead = False  # only a control token would fit the grammar

    @property
    def failed(self) -> bool:
        """Whether the answer cannot become what was asked for: a limit was reached, or the grammar has a dead end."""
        return self.dead or self.parser.is_error()

    def advance(self, token: int) -> None:
        """`token` was picked; one that was not allowed makes it fail."""
        self.parser.consume_token(token)


def mask(logits: Tensor, matchers: Sequence[Matcher]) -> None:
    """Sets to -inf what may not come next. A row whose matcher fails gets only the end tokens.

    Args:
        logits: shape (n, vocab), float32, changed in place.
        matchers: one per row, all of one `Grammars`.
    """
    if not matchers:
        return
    grammars = matchers[0].grammars
    words = np.empty((len(matchers), grammars.words), np.uint32)
    address, size = words.ctypes.data, words.itemsize * grammars.words
    for row, matcher in enumerate(matchers):  # one after another: handing this to threads costs more than it brings
        matcher.parser.unsafe_compute_mask_ptr(address + row * size, size)
    bits = words.view(np.uint8)  # (n, 4 * words)
    bits &= grammars.allowed
    for row in np.flatnonzero(~bits.any(1)).tolist():
        matchers[row].dead = True
        bits[row] = grammars.ends
    if logits.device.type == "cpu":
        _apply_here(logits.numpy(), bits)
    else:
        _apply_there(logits, bits)


def _apply_here(logits: NDArray[np.float32], bits: NDArray[np.uint8]) -> None:
    """On a CPU: in half of torch's time."""
    for row, allowed in zip(logits, bits, strict=True):  # one by one they stay in the processor's cache
        row += _ADDS.take(allowed, axis=0).reshape(-1)[: len(row)]


def _apply_there(logits: Tensor, bits: NDArray[np.uint8]) -> None:
    """On an accelerator, to which only the bits have to go."""
    index = torch.from_numpy(bits).to(logits.device).int()  # (n, 4 * words)
    logits += torch.nn.functional.embedding(index, _adds(logits.device)).flatten(1)[:, : logits.shape[1]]


class _Unusable(Exception):
    """Why a structure cannot be used."""


def _grammar(structure: Structure) -> str:
    """A structure in llguidance's own form."""
    value = structure.value
    if structure.kind in ("json_schema", "json_object"):
        schema = {"type": "object"} if structure.kind == "json_object" else _json(value)
        if not isinstance(schema, dict):
            raise _Unusable("it is not a JSON object")
        made: dict[str, Any] = {"json_schema": schema | {"x-guidance": JSON_FORM}}
    elif structure.kind == "regex":
        if not value:
            raise _Unusable("it is empty")
        made = json.loads(LLMatcher.grammar_from_regex(_text(value)))["grammars"][0]
    elif structure.kind == "choice":
        choices = _json(value)
        if not isinstance(choices, list) or not choices or not all(isinstance(c, str) for c in choices):
            raise _Unusable("it is not a list of one or more strings")
        written = " | ".join(json.dumps(_text(choice), ensure_ascii=False) for choice in choices)
        made = {"lark_grammar": f"start: CHOICE\nCHOICE: {written}"}
    else:
        made = {"lark_grammar": _lark(_text(value))}
    return json.dumps({"grammars": [made]})


def _lark(grammar: str) -> str:
    """A grammar in Lark's syntax, which may be in llama.cpp's GBNF, as vLLM's and SGLang's users mostly send it.

    Rules without rules in them become terminals, which take as much of the text as they can: so a text that llama.cpp
    would read in another way may be impossible, but none that it refuses becomes possible.
    """
    if not GBNF_RULE.search(grammar):
        return grammar
    if grammar.count("::=") * len(grammar) > GBNF_WORK:
        raise _Unusable("it is too long for GBNF; make it shorter, or write it in Lark's syntax")
    try:
        return gbnf_to_lark(grammar)
    except Exception as error:  # the translator raises bare ones, too
        raise _Unusable(f"it is no GBNF ({first_line(error)})") from error


def _json(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"it is not JSON ({error})") from error


def _text(value: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise _Unusable("it holds half a character")
    return value


def _try(grammar: str) -> None:
    try:
        trial = subprocess.run(
            [sys.executable, "-I", "-S", grammar_trial.__file__, _lib.__file__],  # finds no module but Python's
            input=json.dumps({"grammar": grammar, "limits": LIMITS}),
            capture_output=True,
            text=True,
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _Unusable("trying it out took too long") from error
    if trial.returncode > 0:
        logger.error(
            "the trial of a grammar failed with exit code %d", trial.returncode
        )  # its words may quote the grammar
        raise _Unusable("it could not be tried out")
    if trial.returncode:  # a signal: one of its limits
        raise _Unusable("it is too complicated; make it smaller, with fewer parts that depend on each other")
    if cause := trial.stdout.strip():
        raise _Unusable(cause)


def _with_control(tokenizer: str, token_ids: frozenset[int]) -> str:
    """A tokenizer's JSON in which these ids are control tokens, so that no text contains them."""
    state = json.loads(tokenizer)
    for token in state["added_tokens"]:
        token["special"] |= token["id"] in token_ids
    return json.dumps(state)


@cache
def _adds(device: torch.device) -> Tensor:
    return torch.from_numpy(_ADDS).to(device)
