"""`fleetchat up` as a person uses it: the real command, its screen, its exit codes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from broker.embedded import free_port

COMMAND = [str(Path(sys.executable).with_name("fleetchat"))]

pytestmark = pytest.mark.timeout(60)


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLEETCHAT_", "REDIS_"))}
    return kept | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200", "PATH": "/usr/bin:/bin"} | more


@contextmanager
def up(data: Path, *options: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A running `fleetchat up`, its screen shown; and its port."""
    port = free_port()
    command = [*COMMAND, "up", "--no-browser", "--data", str(data), "--port", str(port), *options]
    with subprocess.Popen(
        command, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process, port
        finally:
            process.kill()


def screen(process: subprocess.Popen[str], until: str) -> str:
    """What it prints up to a line."""
    shown = ""
    assert process.stdout
    for line in process.stdout:
        shown += line
        if until in line:
            return shown
    raise AssertionError(f"it ended with {process.wait()}:\n{shown}")


def refused(*options: str, **env: str) -> str:
    """The one sentence of a command that exits with 2."""
    done = subprocess.run([*COMMAND, *options], env=environment(**env), capture_output=True, text=True, timeout=30)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr.strip()


def children(pid: int) -> set[int]:
    return {int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def workers(pid: int, role: bytes = b"auto") -> set[int]:
    """The children that are workers of a role."""
    found = set()
    for child in children(pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # it may end while it is read
            entry = Path(f"/proc/{child}")
            settings = (entry / "cmdline").read_bytes().split(b"\0") + (entry / "environ").read_bytes().split(b"\0")
            if {b"workers.Settings", b"FLEETCHAT_ROLE=" + role} <= set(settings):
                found.add(child)
    return found


def test_the_screen_the_page_and_the_end(tmp_path):
    with up(tmp_path, "--model", "echo", "--model", "parrot=echo") as (process, port):
        shown = screen(process, "Ctrl-C")
        assert f"http://127.0.0.1:{port}" in shown
        assert re.search(r"echo +ready", shown)
        valkey = re.search(r"redis-cli -p (\d+)", shown)
        assert valkey
        arq = COMMAND[0].replace("fleetchat", "arq")  # by its path, since it is not on this test's PATH
        assert f"REDIS_URL=redis://127.0.0.1:{valkey[1]}/0 FLEETCHAT_MODEL=echo {arq} workers.Settings" in shown
        assert f"status --watch --data {tmp_path}" in shown
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as response:
            assert response.status == 200
        status = subprocess.run(
            [*COMMAND, "status", "--data", str(tmp_path)], env=environment(), capture_output=True, text=True
        )
        assert re.search(r"echo +ready +1 +0 +32 +0", status.stdout)
        asked = subprocess.run(
            [*COMMAND, "ask", "echo", "hello you", "--data", str(tmp_path)],
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert asked.stdout == "hello you\n"
        assert "2 tokens in, 2 out" in asked.stderr
        nobody = subprocess.run(
            [*COMMAND, "ask", "nope", "hi", "--data", str(tmp_path)], env=environment(), capture_output=True, text=True
        )
        assert (nobody.returncode, nobody.stdout) == (1, "")
        assert "nope" in nobody.stderr

        sentence = refused("up", "--model", "echo", "--data", str(tmp_path), "--port", str(port))
        assert "already running" in sentence
        assert str(tmp_path) in sentence
        sentence = refused("up", "--model", "echo", "--data", str(tmp_path / "other"), "--port", str(port))
        assert f"127.0.0.1:{port}" in sentence

        started = children(process.pid)
        assert len(started) == 5  # Valkey, two workers, the one for jobs, the web app
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert time.monotonic() - begun < 5
        assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def test_models_that_share_a_worker_and_models_of_a_file(tmp_path):
    (tmp_path / "models.toml").write_text('[models.one]\nsource = "echo"\n[models.two]\nsource = "echo"\n')
    file = {"FLEETCHAT_MODELS_FILE": str(tmp_path / "models.toml")}
    data = tmp_path / "data"
    with up(data, "--model", "one,a=echo,b=echo", "--model", "two", **file) as (process, _):
        shown = screen(process, "Ctrl-C")
        assert f"FLEETCHAT_MODELS_FILE={tmp_path}/models.toml FLEETCHAT_MODEL=one " in shown
        assert len(workers(process.pid)) == 2
        for name in ("one", "a", "b"):
            assert re.search(rf"{name} +ready", shown)
        assert sorted(log.name for log in (data / "logs").glob("worker-*")) == ["worker-one+2.log", "worker-two.log"]
    with up(data, **file) as (process, _):
        shown = screen(process, "Ctrl-C")
        assert re.search(r"one +(ready|starting|loading)", shown)
        assert re.search(r"two +(ready|starting|loading)", shown)
        assert len(workers(process.pid)) == 2


def test_it_stops_in_time_while_an_answer_is_written(tmp_path):
    with up(tmp_path, "--model", "echo") as (process, _):
        screen(process, "Ctrl-C")
        with subprocess.Popen(
            [*COMMAND, "ask", "echo", "/echo 2000 50ms", "--data", str(tmp_path)],
            env=environment(),
            stdout=subprocess.PIPE,
        ) as asking:
            assert asking.stdout
            assert asking.stdout.read(2) == b"1 "
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            assert time.monotonic() - begun < 5
            asking.kill()


def test_a_child_that_dies_is_started_again_and_the_screen_says_so(tmp_path):
    with up(tmp_path, "--model", "echo") as (process, port):
        screen(process, "Ctrl-C")
        (worker,) = workers(process.pid)
        os.kill(worker, signal.SIGKILL)
        assert "signal SIGKILL" in screen(process, "starts again in 1 s")
        deadline = time.monotonic() + 20
        while not workers(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as response:
            assert response.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_worker_that_was_drained_is_not_started_again(tmp_path):
    with up(tmp_path, "--model", "echo") as (process, _):
        screen(process, "Ctrl-C")
        (worker,) = workers(process.pid)
        drained = subprocess.run(
            [*COMMAND, "drain", f"{worker}-", "--data", str(tmp_path)],
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert drained.returncode == 0, drained
        assert f"-{worker}-" in drained.stdout
        assert "it had 0 answers" in drained.stdout
        assert "is not started again" in screen(process, "has drained")
        assert not Path(f"/proc/{worker}").exists()
        assert len(children(process.pid)) == 3  # Valkey, the web app, the worker for jobs
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_one_worker_for_jobs_that_starts_again(tmp_path):
    with up(tmp_path, "--model", "echo", FLEETCHAT_METRICS=f"127.0.0.1:{free_port()}") as (process, _):
        screen(process, "Ctrl-C")
        (jobs,) = workers(process.pid, b"jobs")
        os.kill(jobs, signal.SIGKILL)
        assert "The jobs worker stopped" in screen(process, "starts again in 1 s")
        deadline = time.monotonic() + 20
        while not workers(process.pid, b"jobs"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_worker_for_jobs_that_cannot_start_is_told_and_all_else_runs(tmp_path):
    (tmp_path / "table.csv").write_text("no,table\n1,2\n")
    arena = tmp_path / "arena.toml"
    arena.write_text('[ratings]\ntable = "table.csv"\n')
    with up(tmp_path, "--model", "echo", FLEETCHAT_ARENA_FILE=str(arena)) as (process, port):
        assert "no leaderboard table" in screen(process, "The jobs worker does not run")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as response:
            assert response.status == 200


def test_no_password_is_on_the_screen(tmp_path):
    up_ = ("up", "--model", "echo", "--data", str(tmp_path))
    for command, url in (
        (("status",), "redis://me:s3cret@127.0.0.1:1/0"),
        (("drain", "w"), "http://me:s3cret@127.0.0.1:1"),
        (up_, "redis://:s3cret#x@127.0.0.1:1/0"),
    ):
        sentence = refused(*command, REDIS_URL=url)
        assert "127.0.0.1:1" in sentence
        assert "s3cret" not in sentence


def test_when_up_itself_is_killed_nothing_is_left_behind(tmp_path):
    with up(tmp_path, "--model", "echo") as (process, _):
        screen(process, "Ctrl-C")
        started = children(process.pid)
        process.kill()
        deadline = time.monotonic() + 10
        while alive := [pid for pid in started if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.05)


def test_fleets_side_by_side(tmp_path):
    with up(tmp_path / "a", "--model", "echo") as (one, first), up(tmp_path / "b", "--model", "echo") as (two, second):
        screen(one, "Ctrl-C")
        screen(two, "Ctrl-C")
        assert first != second
        assert (tmp_path / "a/redis.url").read_text() != (tmp_path / "b/redis.url").read_text()


def test_a_start_that_cannot_be_is_one_sentence_and_exit_code_2(tmp_path):
    data = ("--data", str(tmp_path))
    assert "no folder './nope'" in refused("up", *data, "--model", "./nope")
    assert "no name before the =" in refused("up", *data, "--model", "=echo")
    assert "Two models are called echo" in refused("up", *data, "--model", "echo", "--model", "echo")
    assert "cannot share a worker" in refused("up", *data, "--model", "a=echo,pocket")
    assert "no.toml cannot be read" in refused("up", *data, FLEETCHAT_MODELS_FILE="no.toml")
    assert "FLEETCHAT_SLOTS" in refused("up", *data, FLEETCHAT_SLOTS="x")
    assert "REDIS_URL=redis://127.0.0.1:1" in refused("up", *data, "--model", "echo", REDIS_URL="redis://127.0.0.1:1")
    assert "no address of a Redis" in refused("up", *data, "--model", "echo", REDIS_URL="http://x")
    assert "no fleet" in refused("status", REDIS_URL="redis://127.0.0.1:1")
    file = tmp_path / "file"
    file.write_text("")
    assert "cannot be used" in refused("up", "--model", "echo", "--data", str(file))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "Cannot listen" in refused("up", *data, "--model", "echo", "--port", port)


def test_a_model_that_cannot_be_served_ends_up_with_its_sentence(tmp_path):
    empty = tmp_path / "empty-model"
    empty.mkdir()
    sentence = refused("up", "--data", str(tmp_path / "data"), "--port", str(free_port()), "--model", str(empty))
    assert sentence.startswith("empty-model cannot be served")
    assert len(sentence.splitlines()) == 1


def test_a_missing_extra_is_named(tmp_path):
    """In an interpreter where torch cannot be found, as after `pip install fleetchat` without extras."""
    code = (
        "import sys, importlib.util; real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, p=None: None if n in ('torch', 'transformers') else real(n, p)\n"
        "from broker.cli import main; sys.argv = ['fleetchat', 'up', '--data', sys.argv[1]]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install 'fleetchat[worker]'" in done.stderr
