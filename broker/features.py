"""What a vote keeps of its texts: categories by written rules, counts of style, and whether an answer says who it is.

Comes in: prompts and both sides' answers, turn by turn. Goes out: what `broker.votes.Vote` has fields for, so that ratings
never need the texts. Pure.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from broker.votes import Style


@dataclass(frozen=True, slots=True)
class Features:
    """Of one battle."""

    categories: tuple[str, ...]
    style_a: Style
    style_b: Style
    leak: bool


def describe(turns: Sequence[tuple[str, str, str]]) -> Features:
    """The features of a battle's turns, each (prompt, answer of a, answer of b)."""
    return Features((), style(turn[1] for turn in turns), style(turn[2] for turn in turns), False)  # fmt: skip


def style(answers) -> Style:  # type: ignore[no-untyped-def]
    """Counts over all answers of one side."""
    text = "\n".join(answers)
    words = len(re.findall(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+", text))
    return words, 0, 0, 0
