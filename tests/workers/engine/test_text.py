"""Pieces of text, joined, are the text; stop strings end it at the right character."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.tiny_model import tokenizer
from workers.engine.text import Transcript, Vocabulary

TEXTS = [
    "Hello world, this is plain.  Two blanks,\n\nnew lines and\ttabs .",
    "😀😃👍🏽 family 👨‍👩‍👧‍👦 flags 🇩🇪🇫🇷",
    "你好，世界。今天天气很好。한국어 텍스트 日本語",
    "e\u0301 a\u0308\u0323 नमस्ते ถนน שלום",
    "literal \ufffd and \ufffd\ufffd stay",
    " leading and trailing ",
]


def sentencepiece_like(fallback: bool = True) -> PreTrainedTokenizerFast:
    """Like Llama 2's: ▁ for a space, one put in front, bytes for what the vocabulary does not have."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    letters = sorted({c for text in TEXTS[:1] for c in text.replace(" ", "▁")} | {"▁", "你", "é"})
    for piece in (*letters, "▁H", "He", "ll", "▁w", "▁▁", "or"):
        vocab.setdefault(piece, len(vocab))
    merges = [("▁", "H"), ("H", "e"), ("l", "l"), ("▁", "w"), ("▁", "▁"), ("o", "r")]
    bpe = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=fallback))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def metaspace() -> PreTrainedTokenizerFast:
    """Like T5's and Gemma's: whole words with ▁, the first one stripped by the decoder; cleaned up when decoded."""
    vocab = {"<unk>": 0, "<s>": 1} | {
        w: i + 2 for i, w in enumerate(("▁", "▁Hello", "▁world", ",", ".", "n't", "'s", "lo", "▁a"))
    }
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    words.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>")])
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", clean_up_tokenization_spaces=False)


def with_added_words() -> PreTrainedTokenizerFast:
    """The byte-level one with words of its own, one of them beyond the byte alphabet."""
    made = tokenizer()
    made.add_tokens(["<think>", "你好吗", "a b"])
    return made


MAKERS = [tokenizer, with_added_words, sentencepiece_like, lambda: sentencepiece_like(fallback=False), metaspace]


def read(vocabulary: Vocabulary, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    transcript = Transcript(vocabulary, stop)
    pieces = []
    for i in ids:
        pieces.append(transcript.feed(i))
        if transcript.stopped:
            break
    return [*pieces, transcript.finish()], transcript.stopped


def whole(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_text_join_to_the_text(make, text: str) -> None:
    made = make()
    ids = made.encode(text, add_special_tokens=False)
    pieces, _ = read(Vocabulary(made), ids)
    assert "".join(pieces) == whole(made, ids)


@pytest.mark.parametrize("make", MAKERS)
def test_pieces_of_any_ids_join_to_what_decoding_gives(make) -> None:
    made, rng = make(), random.Random(0)
    vocabulary = Vocabulary(made)
    for length in [1, 2, 3, 5, 8] * 40 + [60] * 20:
        ids = [rng.randrange(len(made)) for _ in range(length)]
        pieces, _ = read(vocabulary, ids)
        assert "".join(pieces) == whole(made, ids), ids


def test_bytes_in_any_order_join_to_what_decoding_gives() -> None:
    made, rng = tokenizer(), random.Random(1)
    alphabet = [made.convert_tokens_to_ids(c) for c in sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = Vocabulary(made)
    for _ in range(500):
        ids = rng.choices(alphabet, k=12)
        pieces, _ = read(vocabulary, ids)
        assert "".join(pieces) == whole(made, ids), ids


@pytest.mark.parametrize("make", [tokenizer, sentencepiece_like])
def test_half_a_character_is_never_shown(make) -> None:
    made = make()
    for text in TEXTS[1:4]:
        pieces, _ = read(Vocabulary(made), made.encode(text, add_special_tokens=False))
        assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_as_soon_as_it_is_certain() -> None:
    made = tokenizer()
    ids = made.encode("a😀b", add_special_tokens=False)
    transcript = Transcript(Vocabulary(made))
    shown = [transcript.feed(i) for i in ids]
    assert shown[0] == "a"
    assert shown[-1].endswith("b")
    assert transcript.finish() == ""


def test_an_answer_that_ends_within_a_character_shows_what_is_left() -> None:
    made = tokenizer()
    ids = made.encode("😀", add_special_tokens=False)[:-1]
    assert read(Vocabulary(made), ids)[0][-1] == whole(made, ids) == "\ufffd"


def test_control_tokens_have_no_text() -> None:
    made = tokenizer()
    ids = made.encode("a<|im_end|>b<|im_start|>", add_special_tokens=False)
    assert len(ids) == 4
    assert "".join(read(Vocabulary(made), ids)[0]) == "ab"


@pytest.mark.parametrize(
    ("text", "stop", "shown", "stopped"),
    [
        ("one STOP two", ("STOP",), "one ", True),
        ("one STO two", ("STOP",), "one STO two", False),
        ("one two STO", ("STOP",), "one two STO", False),
        ("aaab", ("aab",), "a", True),
        ("xabcd", ("abcd", "bc"), "xa", True),  # bc is complete first
        ("xabcd", ("bcd", "abcd"), "x", True),  # complete together: the one that begins first
        ("a\n\nb", ("\n\n",), "a", True),
        ("😀!", ("😀",), "", True),
        ("abc", ("",), "abc", False),
        ("STOP", ("STOP",), "", True),
        ("one STOP two STOP", ("two", "STOP"), "one ", True),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], shown: str, stopped: bool) -> None:
    made = tokenizer()
    vocabulary = Vocabulary(made)
    for ids in (made.encode(text, add_special_tokens=False), [i for c in text for i in made.encode(c)]):
        pieces, hit = read(vocabulary, ids, stop)
        assert ("".join(pieces), hit) == (shown, stopped)


def test_only_the_possible_beginning_of_a_stop_string_is_held_back() -> None:
    made = tokenizer()
    transcript = Transcript(Vocabulary(made), ("END.",))
    feed = [transcript.feed(i) for c in "the END, ENE" for i in made.encode(c)]
    assert feed == ["t", "h", "e", " ", "", "", "", "END,", " ", "", "", "EN"]
    assert transcript.finish() == "E"


def test_any_split_of_the_ids_shows_the_same() -> None:
    """A resumed answer goes on at the very character, with and without a stop string that spans the split."""
    made = tokenizer()
    vocabulary = Vocabulary(made)
    ids = made.encode("Hi 😀 there, this 你好 is STOP it", add_special_tokens=False)
    for stop in ((), ("STOP",)):
        pieces, _ = read(vocabulary, ids, stop)
        for split in range(len(ids)):
            fresh = Transcript(vocabulary, stop)
            before = "".join(fresh.feed(i) for i in ids[:split])
            assert before == "".join(pieces[:split])


def test_every_id_can_be_spelt_by_itself():
    made = tokenizer()
    vocabulary = Vocabulary(made)
    ids = made.encode("你好 😀 e\u0301 fox")
    assert b"".join(map(vocabulary.spell, ids)).decode() == "你好 😀 e\u0301 fox"
    assert vocabulary.spell(2) == b"<|im_end|>"
    assert vocabulary.spell(10**6) == b""


def test_stop_strings_wait_for_the_least_tokens():
    made = tokenizer()
    ids = made.encode("fox fox fox")
    half = Transcript(Vocabulary(made), ("fox",), after=len(ids))
    text = "".join(map(half.feed, ids)) + half.finish()
    assert half.stopped
    assert text == "fox fox "


@pytest.mark.parametrize("made", [tokenizer, sentencepiece_like])
def test_a_control_token_that_is_needed_is_shown_and_no_other(made) -> None:
    found = made()
    ids = found.encode("He or ", add_special_tokens=False)
    marker, other = found.convert_ids_to_tokens([2, 1])
    for shown in (frozenset(), frozenset({2})):
        transcript = Transcript(Vocabulary(found, shown))
        said = "".join(transcript.feed(i) for i in [*ids, 1, 2, *ids]) + transcript.finish()
        assert (marker in said, other in said) == (2 in shown, False)
        assert said.replace(marker, " ").split() == ["He", "or", "He", "or"]
