"""Simulated streams before an injected clock: what a reader of both sides can tell of their speed."""

from itertools import pairwise

import pytest

from webapp.pacing import READ, TICK_SECONDS, Pacing, Piece


def stream(text: str, rate: float, first: float = 0.0, size: int = 4) -> list[tuple[float, str]]:
    """When its pieces come: characters a second, after a first wait."""
    return [(first + i / rate, text[i : i + size]) for i in range(0, len(text), size)]


def play(a: list[tuple[float, str]], b: list[tuple[float, str]], paced: bool = True) -> list[tuple[float, Piece]]:
    """What is shown, and when."""
    pacing = Pacing("ab", paced)
    coming = sorted(
        [(at, "a", i, text) for i, (at, text) in enumerate(a)] + [(at, "b", i, text) for i, (at, text) in enumerate(b)]
    )
    last = {"a": len(a) - 1, "b": len(b) - 1}
    shown, tick = [], 0
    for side, pieces in (("a", a), ("b", b)):
        if not pieces:
            pacing.end(side)
    asleep = False  # as the caller is that looks only when something came, or time alone makes more due
    while not pacing.finished:
        now = tick * TICK_SECONDS
        while coming and coming[0][0] <= now:
            _, side, i, text = coming.pop(0)
            pacing.add(side, i, text)
            asleep = False
            if i == last[side]:
                pacing.end(side)
        if not asleep:
            shown += [(now, piece) for piece in pacing.take(now)]
            asleep = not pacing.flows
        tick += 1
        assert tick < 10_000
    return shown


def text_of(shown, side: str) -> str:
    return "".join(piece.text for _, piece in shown if piece.side == side)


def seen(shown, side: str, until: float = 1e9) -> list[tuple[float, int]]:
    """Times and sizes: all that a reader sees beside the text."""
    return [(at, len(piece.text)) for at, piece in shown if piece.side == side and piece.text and at < until]


A, B = "a" * 600, "b" * 600


@pytest.mark.parametrize(("fast", "first"), [(4000.0, 0.0), (700.0, 0.3), (90.0, 2.0)])
def test_a_slow_and_a_fast_side_appear_at_the_same_times(fast, first):
    slow = stream(B, 80.0, 0.8)
    shown = play(stream(A, fast, first), slow)
    assert seen(shown, "a") == seen(shown, "b")
    assert (text_of(shown, "a"), text_of(shown, "b")) == (A, B)
    swapped = play(slow, stream(A, fast, first))
    assert [(at, len(p.text)) for at, p in shown] == [(at, len(p.text)) for at, p in swapped]


def test_both_begin_when_both_have_begun():
    shown = play(stream(A, 5000.0), stream(B, 500.0, first=3.0))
    assert min(at for at, _ in shown) >= 3.0


@pytest.mark.parametrize("slower", ["short", "long"])
def test_the_longer_one_goes_on_alike_whichever_was_quicker(slower):
    """From what follows the shorter one nobody can tell either, as long as the longer one has something to show."""
    short, long = "s" * 200, "l" * 2000
    rates = {"short": (60.0, 3000.0), "long": (3000.0, 160.0)}[slower]
    shown = play(stream(short, rates[0]), stream(long, rates[1]))
    (end,) = [at for at, piece in shown if piece.side == "a" and piece.end]
    assert seen(shown, "a") == seen(shown, "b", end + TICK_SECONDS / 2)
    alone = [(at, n) for at, n in seen(shown, "b") if at > end + TICK_SECONDS]
    assert text_of(shown, "b") == long
    together = len(short) / (end - min(at for at, _ in shown) or 1)
    rate = max(READ, together)
    assert max(n for _, n in alone) <= rate * TICK_SECONDS + 1, "no burst"
    whole = sum(n for _, n in alone) / (alone[-1][0] - alone[0][0])
    assert whole == pytest.approx(rate, rel=0.1)


def test_what_is_quicker_than_one_reads_stays_as_quick_as_both_were():
    shown = play(stream("s" * 1000, 2000.0), stream("l" * 3000, 9000.0))
    (end,) = [at for at, piece in shown if piece.side == "a" and piece.end]
    assert shown[-1][0] - end == pytest.approx(2000 / 2000, rel=0.3)


def test_an_answer_of_nothing_ends_at_once_and_the_other_has_its_usual_pace():
    shown = play([], stream("l" * 300, 9000.0, 0.4))
    assert [piece for _, piece in shown if piece.side == "a"] == [Piece("a", 0, "", True)]
    assert text_of(shown, "b") == "l" * 300
    assert shown[-1][0] == pytest.approx(0.4 + 300 / READ, abs=0.3)


def test_a_caller_that_was_held_up_gets_no_burst():
    pacing = Pacing("ab")
    pacing.end("a")
    pacing.add("b", 0, "l" * 1000)
    pacing.take(0.0)
    assert pacing.flows
    assert sum(len(p.text) for p in pacing.take(60.0)) <= READ * 0.2 + 1


def test_numbers_go_up_by_one_and_the_end_comes_once():
    shown = play(stream(A, 300.0), stream(B, 900.0))
    for side in "ab":
        mine = [piece for _, piece in shown if piece.side == side]
        assert [piece.seq for piece in mine] == list(range(len(mine)))
        assert [piece.end for piece in mine] == [False] * (len(mine) - 1) + [True]
    assert all(b >= a for (a, _), (b, _) in pairwise(shown))


def test_stopped_sides_show_no_more_and_end_together():
    pacing = Pacing("ab")
    pacing.add("a", 0, "a" * 500)
    pacing.add("b", 0, "bb")
    assert [len(p.text) for p in pacing.take(0.0)] == [2, 2]
    pacing.stop()
    pacing.add("a", 1, "was on its way")
    assert pacing.take(0.05) == [Piece("a", 1, "", True), Piece("b", 1, "", True)]
    assert pacing.finished


def test_frames_that_are_replaced_begin_the_text_anew_only_if_it_differs():
    pacing = Pacing("ab", paced=False)
    for i, text in enumerate(("one ", "two ", "three")):
        pacing.add("a", i, text)
    assert pacing.take(0.0) == [Piece("a", 0, "one two three")]
    pacing.add("a", 1, "two ")
    assert pacing.take(0.05) == []
    pacing.add("a", 2, "three four")
    assert pacing.take(0.1) == [Piece("a", 1, " four")]
    pacing.add("a", 1, "TWO ")
    assert pacing.take(0.2) == [Piece("a", 0, "one TWO ")]


def test_without_pacing_all_comes_as_it_comes():
    shown = play(stream(A, 5000.0), stream(B, 50.0), paced=False)
    ends = {piece.side: at for at, piece in shown if piece.end}
    assert ends["a"] < 0.2
    assert ends["b"] > 11


def test_ends_that_are_held_are_said_only_when_they_are_released():
    pacing = Pacing("ab", held=True)
    for side in "ab":
        pacing.add(side, 0, "text")
        pacing.end(side)
    assert pacing.take(0.0) == [Piece("a", 0, "text"), Piece("b", 0, "text")]
    assert pacing.take(1.0) == []
    assert not pacing.flows
    assert not pacing.finished
    pacing.release()
    assert pacing.take(2.0) == [Piece("a", 1, "", True), Piece("b", 1, "", True)]
    assert pacing.finished
