from pathlib import Path

import pytest

from broker import rules
from broker.errors import SetupError
from broker.rules import Rules, matches


def read(tmp_path: Path, text: str) -> Rules:
    file = tmp_path / "arena.toml"
    file.write_text(text, encoding="utf-8")
    return rules.read(file)


def test_without_a_file_the_defaults_hold(tmp_path):
    assert rules.read(None) == read(tmp_path, "") == Rules()
    assert Rules().sampling.active
    assert Rules().battle.paced
    assert not Rules().moderation.on


def test_a_file_says_what_differs(tmp_path):
    (tmp_path / "words.txt").write_text("x")
    found = read(
        tmp_path,
        """
        [sampling]
        default = 0.5
        weights = { left = 2 }
        targets = { left = ["right", "r*"] }
        never = [["left", "other"]]
        [battle]
        paced = false
        [votes]
        session = 0
        [ratings]
        anchor = { model = "left", score = 1114 }
        deprecated = ["old-*"]
        [moderation]
        words = "words.txt"
        fails = "open"
        """,
    )
    assert (found.sampling.default, found.sampling.weights, found.sampling.floor) == (0.5, {"left": 2}, 0.1)
    assert found.sampling.never == [("left", "other")]
    assert (found.battle.paced, found.battle.turns, found.votes.session) == (False, 50, 0)
    assert found.ratings.anchor is not None
    assert found.ratings.anchor.score == 1114
    assert found.moderation.words == tmp_path / "words.txt", "a path is relative to the file"
    assert found.moderation.on


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[sampling]\nflor = 0.1", r"sampling\.flor: there is no such rule"),
        ("[sampling]\nfloor = 2", r"sampling\.floor: Input should be less than or equal to 1"),
        ("[sampling.weights]\nleft = -1", r"sampling\.weights\.left"),
        ("[sampling.weights]\nleft = nan", r"sampling\.weights\.left"),
        ("[sampling]\nnever = [['one']]", r"sampling\.never"),
        ("[moderation]\nurl = 'http://x'\nmodel = 'y'", "three ways to check"),
        ("[moderation]\nwords = 'none.txt'", r"moderation\.words: there is no file"),
        ("[ratings]\ntable = 'none.csv'", r"ratings\.table: there is no file"),
        ("[moderation]\nfails = 'maybe'", r"moderation\.fails"),
        ("sampling", "is not TOML"),
    ],
)
def test_a_mistake_is_a_sentence_with_its_place(tmp_path, text, why):
    with pytest.raises(SetupError, match=why):
        read(tmp_path, text)


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path):
    with pytest.raises(SetupError, match="cannot be read: No such file"):
        rules.read(tmp_path / "none.toml")


def test_names_may_end_in_a_star():
    assert matches("old-1", ["old-*"])
    assert matches("exact", ["other", "exact"])
    assert not matches("older", ["old-*", "exact"])
