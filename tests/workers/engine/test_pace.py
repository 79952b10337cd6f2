"""Steps are paced by what earlier ones took."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from workers.engine import pace
from workers.engine.pace import LEAST_TOKENS, TRIAL_EVERY, Pace

MOST = 512


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=made.perf_counter))
    return made


@pytest.fixture
def threads() -> Iterator[int]:
    """Four threads for torch, and what there was afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


def step(paced: Pace, clock: Clock, running: int, prompts: int, seconds: float) -> None:
    paced.begin(running, prompts)
    clock.now += seconds
    paced.end(running, prompts)


def test_prompts_alone_get_whole_steps(clock: Clock) -> None:
    paced = Pace(MOST)
    step(paced, clock, 0, 100, 1.0)
    step(paced, clock, 4, 0, 0.001)
    assert paced.room(0) == MOST


def test_beside_answers_prompts_add_less_than_another_step(clock: Clock) -> None:
    paced = Pace(MOST)
    assert paced.room(4) == MOST  # nothing is known yet
    for _ in range(9):
        step(paced, clock, 4, 0, 0.010)
    for _ in range(20):
        step(paced, clock, 4, 100, 0.010 + 100 * 0.0002)
    room = paced.room(4) - 4
    assert 0.2 < room * 0.0002 / 0.010 < 1
    for _ in range(20):
        step(paced, clock, 4, 50, 0.010 + 50 * 0.0010)  # a prompt becomes dearer as it grows
    assert paced.room(4) - 4 == LEAST_TOKENS
    for _ in range(40):
        step(paced, clock, 4, 500, 0.010 + 500 * 0.000001)
    assert paced.room(4) == MOST


def test_one_slow_step_changes_nothing(clock: Clock) -> None:
    paced = Pace(MOST)
    step(paced, clock, 0, 100, 0.01)
    for _ in range(9):
        step(paced, clock, 4, 0, 0.010)
    before = paced.room(4)
    step(paced, clock, 4, 0, 3.0)
    assert paced.room(4) == before


def test_one_thread_runs_the_steps_while_it_is_quicker(clock: Clock, threads: int) -> None:
    paced = Pace(MOST)

    def run(steps: int, alone: float, together: float) -> list[int]:
        used = []
        for _ in range(steps):
            paced.begin(8, 0)
            used.append(torch.get_num_threads())
            clock.now += alone if used[-1] == 1 else together
            paced.end(8, 0)
        return used

    assert set(run(2 * TRIAL_EVERY, 0.020, 0.005)) == {threads}  # alone it would be slow, so nobody has to wait for it
    run(TRIAL_EVERY, 0.020, 0.100)  # a neighbour has come
    assert run(TRIAL_EVERY // 2, 0.020, 0.100)[-1] == 1
    run(10 * TRIAL_EVERY, 0.020, 0.005)  # and gone
    assert run(2, 0.020, 0.005) == [threads] * 2


def test_of_two_threads_one_is_tried_now_and_then(clock: Clock) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        paced, used = Pace(MOST), []
        for _ in range(2 * TRIAL_EVERY):
            paced.begin(1, 0)
            used.append(torch.get_num_threads())
            clock.now += 0.0025 if used[-1] == 1 else 0.002
            paced.end(1, 0)
        assert used.count(1) == 4
    finally:
        torch.set_num_threads(before)
