"""Token ids of an answer in, text out, piece by piece.

Joined, the pieces are exactly what decoding all ids at once gives (special tokens skipped), cut before the first stop
string. Nothing is shown that a later token could change: neither half a character nor what may be the beginning of a
stop string. What has been shown after some ids depends on those ids alone, not on how they were grouped, so a worker
that resumes an answer feeds the logged ids and goes on at the very character.
"""

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

from tokenizers import decoders
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

LONGEST_WAIT = 16  # tokens for which an incomplete character is waited for, where a decoder gives no bytes
_BYTES: dict[str, int] = {  # how byte-level vocabularies write bytes
    char: value
    for value, char in bytes_to_unicode().items()  # type: ignore[no-untyped-call]
}


class Detokenizer(Protocol):
    """The text of one growing list of ids."""

    def feed(self, token_id: int) -> str:
        """The text that this id makes certain; often "" in the middle of a character."""
        ...

    def flush(self) -> str:
        """What was held back, when no id will follow."""
        ...


class Vocabulary:
    """What a tokenizer's ids mean; shared by all answers of a model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, shown: frozenset[int] = frozenset()) -> None:
        """Looks at the tokenizer once; keeps it. `shown` are control tokens that have a text here, since it is needed."""
        self._tokenizer: Any = tokenizer
        self._shown = {i: self._tokenizer.added_tokens_decoder[i].content for i in shown}
        self._special = {i for i, token in self._tokenizer.added_tokens_decoder.items() if token.special} - shown
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._byte_level = isinstance(getattr(backend, "decoder", None), decoders.ByteLevel)
        self._bytes: dict[int, bytes] = {}

    def detokenizer(self) -> Detokenizer:
        """A fresh one for one answer."""
        return _Bytes(self) if self._byte_level else _Window(self)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of all ids at once, without special tokens."""
        if any(i in self._shown for i in token_ids):  # `token_ids` has no control tokens but these
            return str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token, which has no text."""
        return token_id in self._special

    def is_byte(self, token_id: int) -> bool:
        """Whether the id is written like <0xE4>, a single byte of a character that the vocabulary does not have."""
        token = self._tokenizer.convert_ids_to_tokens(token_id) or ""
        return len(token) == 6 and token.startswith("<0x") and token.endswith(">")

    def spell(self, token_id: int) -> bytes:
        """One id by itself, control tokens too; half a character is half a character."""
        if self._byte_level and not self.is_special(token_id):
            return self.bytes_of(token_id)
        token = self._tokenizer.convert_ids_to_tokens(token_id) or ""
        if self.is_byte(token_id):
            return bytes([int(token[3:5], 16)])
        return str(token).replace("\u2581", " ").encode()

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of one id of a byte-level vocabulary; none for special and unknown ids."""
        found = self._bytes.get(token_id)
        if found is None:
            token = "" if token_id in self._special else self._tokenizer.convert_ids_to_tokens(token_id) or ""
            known = all(char in _BYTES for char in token)  # added tokens are written as they are
            found = self._bytes[token_id] = bytes(_BYTES[char] for char in token) if known else token.encode()
        return found


class Transcript:
    """One answer as text: detokenised, and ended by the stop string that is complete first."""

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = (), after: int = 0) -> None:
        """`stop` are the strings before which the text ends, empty ones passed over, once `after` tokens were fed."""
        self._after = after
        self._detokenizer = vocabulary.detokenizer()
        self._stop = tuple(s for s in stop if s)
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False  # a stop string was found: the text ends before it

    def feed(self, token_id: int) -> str:
        """The text that this id makes certain. Nothing more comes once `stopped` is true."""
        self._after -= 1
        return self._scan(self._detokenizer.feed(token_id))

    def finish(self) -> str:
        """What was held back, when no id will follow."""
        text = self._scan(self._detokenizer.flush())
        held, self._held = self._held, ""
        return text + held

    def _scan(self, text: str) -> str:
        if self.stopped or not self._stop or self._after > 0:
            return "" if self.stopped else text
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]  # complete first; of two that end together the one that begins first
        held = next((i for i in range(len(text)) if any(stop.startswith(text[i:]) for stop in self._stop)), len(text))
        self._held = text[held:]
        return text[:held]


class _Bytes:
    """For byte-level vocabularies, where every id is some bytes: exact, and the same work for every token."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        return self._utf8.decode(self._vocabulary.bytes_of(token_id))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Window:
    """For every other tokenizer: decodes the last shown tokens with and without the new ones; the difference is new.

    The shown ones are there because a token may look different at the beginning of a text (most drop a leading
    space). A run of byte tokens is held until it ends: one wrong byte in it changes how all of it is decoded.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ids: list[int] = []  # the last shown ones, then those that wait
        self._shown = 0  # how many of _ids have been shown
        self._before = ""  # the text of the shown ones

    def feed(self, token_id: int) -> str:
        if self._vocabulary.is_special(token_id):
            return ""
        self._ids.append(token_id)
        if self._vocabulary.is_byte(token_id):
            return ""
        text = self._vocabulary.decode(self._ids)
        if text.endswith("\ufffd") and len(self._ids) - self._shown < LONGEST_WAIT:
            return ""
        return self._show(text)

    def flush(self) -> str:
        return self._show(self._vocabulary.decode(self._ids))

    def _show(self, text: str) -> str:
        new = text[len(self._before) :]
        if new:
            self._ids = self._ids[self._shown :]
            self._shown = len(self._ids)
            self._before = self._vocabulary.decode(self._ids)
        return new
