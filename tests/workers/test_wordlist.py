import time
from pathlib import Path

import pytest

from broker.errors import SetupError, Unavailable
from workers import wordlist
from workers.wordlist import WordList


def found(lines: str, text: str) -> str:
    return WordList(lines.splitlines(), "words.txt").find(text)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("ass", "What an ASS!"),
        ("bad word", "such a bad,\n  word"),
        ("bad word", "bad_word = 1"),
        ("Straße", "an der STRASSE"),
        ("café", "a cafe\u0301"),
        ("bad", "\uff22\uff21\uff24"),  # full width
        ("bad", "b\u200ba\u00add\u2060"),  # zero width space, soft hyphen, word joiner
        ("bad", "b\u0336a\u0336d\u0336"),  # struck through
        ("bad", "\U0001d44f\U0001d44e\U0001d451"),  # mathematical italic
        ("法輪", "這是法輪"),
        ("法輪", "這是法 輪\n"),
        ("買VPN", "在哪裡買vpn好"),
        ("\U0001f595", "you \U0001f595\U0001f3ff"),  # with a colour of skin
        ("C++", "I hate C++."),
        ("हिन्दी", "यह हिन्दी है"),
        ("re: b[a4]d+", "so B4DDD"),
        ("/b[a4]d+/", "b\u200b4d"),
        ("  spaced  ", "spaced"),
    ],
)  # fmt: skip
def test_what_the_list_has_is_found(line: str, text: str) -> None:
    assert found(f"# words\n\n{line}", text) == "line 3 of words.txt"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("ass", "class, assistant, Picasso"),
        ("bad word", "bad, but a word"),
        ("bad word", "badword"),
        ("法輪", "方法，輪到你"),
        ("C++", "the grade is C, not B"),
        ("cafe", "a café"),
        ("हिन्द", "यह हिन्दी है"),
        ("re: ^bad$", "not bad"),
        ("#bad", "bad"),
    ],
)
def test_what_it_does_not_have_is_not(line: str, text: str) -> None:
    assert found(line, text) == ""


def test_the_place_of_the_first_word_is_told_and_never_the_word() -> None:
    assert found("one\ntwo\n/thr../", "three two") == "line 2 of words.txt"
    assert found("one\ntwo\n/thr../", "three") == "line 3 of words.txt"


@pytest.mark.parametrize("pattern", ["/(a+)+$/", "/(a|aa)+$/", "/(.*a){25}$/"])
def test_a_pattern_that_would_never_end_is_given_up(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordlist, "PATTERN_SECONDS", 0.2)
    begun = time.process_time()
    with pytest.raises(Unavailable, match=r"words\.txt took too long, the last in line 2"):
        found(f"/b/\n{pattern}", "a" * 5000 + "!")
    assert time.process_time() - begun < 2


def test_the_words_of_a_long_text_take_time_in_proportion() -> None:
    lines = [f"word{i} again" for i in range(5000)] + [f"法{chr(0x4E00 + i)}" for i in range(5000)]
    text = "word1 word2 again法法法" * 5000
    begun = time.process_time()
    assert WordList(lines, "w").find(text) == "line 3 of w"
    assert WordList([*lines[:1], *lines[-1:]], "w").find("法" * 200_000) == ""
    assert time.process_time() - begun < 3


def test_a_file_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "w.txt"
    file.write_text("\ufeffbad\r\n壞\r\n", encoding="utf-8")
    assert WordList.read(file).find("bad") == "line 1 of w.txt"
    assert WordList.read(file).find("很壞") == "line 2 of w.txt"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"/(/\n", "line 1: the pattern cannot be read"),
        (b"a\n...\n", "line 2: there is nothing"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_by_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "w.txt"
    file.write_bytes(content)
    with pytest.raises(SetupError, match=said):
        WordList.read(file)


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="No such file"):
        WordList.read(tmp_path / "none.txt")
