"""The README tells the truth: settings, commands, routes and every redis-cli line."""

import asyncio
import json
import os
import re
import subprocess
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.main import get_command

from broker import chat, embedded, rules
from broker.cli import app as cli
from broker.config import Config, data_folder
from broker.pairing import Odds
from fleet_process import wait_for_port, web
from helpers import request
from webapp.app import create_app

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(name: str) -> list[str]:
    """The lines of the code block behind `<!-- name -->`."""
    found = re.search(rf"<!-- {name} -->\n```sh\n(.*?)\n```", README, re.S)
    assert found
    return found[1].splitlines()


def test_every_setting_is_in_the_table_with_its_default_and_no_other():
    rows = dict(re.findall(r"^\| `((?:FLEETCHAT|REDIS)_\w+)` \| (.*?) \|", README, re.M))
    assert set(rows) == {f.metadata["variable"] for f in fields(Config)}
    for f in fields(Config):
        if f.name == "data":
            assert Path(rows["FLEETCHAT_DATA"].strip("`")).expanduser() == Config.from_env({}).data == data_folder()
        elif f.name != "origins":
            assert rows[f.metadata["variable"]] == ("" if f.default in ("", None) else f"`{f.default}`")
    for name in set(re.findall(r"FLEETCHAT_\w+", README)):
        assert name in rows


def test_every_command_and_option_of_up_is_named():
    commands = get_command(cli).commands  # type: ignore[attr-defined]
    assert set(commands) == {"up", "status", "ask", "chat", "drain", "keys", "votes", "leaderboard"}
    for name in commands:
        assert f"fleetchat {name}" in README
    for option in commands["up"].params:
        assert any(o in README for o in [*option.opts, *option.secondary_opts]), option.opts


def test_the_arenas_rules_are_taken_as_printed(tmp_path):
    text = re.search(r"<!-- arena -->\n```toml\n(.*?)\n```", README, re.S)[1]  # type: ignore[index]
    file = tmp_path / "arena.toml"
    file.write_text(text)
    for name in ("leaderboard_table.csv", "words.txt"):
        (tmp_path / name).touch()
    found = rules.read(file)
    assert found.sampling.never == [("qwen", "qwen-base")]
    odds = Odds.of(["qwen", "qwen-base", "llama-3", "llama-old", "draft-1", "tiny-1"], found)
    pairs = {frozenset(pair): p for pair, p in zip(odds.pairs, odds.probabilities, strict=True)}
    assert frozenset(("qwen", "draft-1")) in pairs
    assert not any("llama-old" in pair or pair == {"qwen", "qwen-base"} for pair in pairs)
    mine = sum(p for pair, p in pairs.items() if "qwen" in pair)
    assert pairs[frozenset(("qwen", "llama-3"))] > 0.4 * mine


def test_every_route_is_named(config):
    for resource in create_app(config).router.resources():
        assert f"`{resource.canonical}`" in README


def test_the_file_tree_names_what_is_there():
    root = Path(__file__).parents[1]
    for name in re.findall(r"^( *)(\w+/) ", re.search(r"## Where things are\n\n```\n(.*?)```", README, re.S)[1], re.M):  # type: ignore[index]
        indent, folder = name
        assert any(
            (parent / folder).is_dir() for parent in ([root] if not indent else [root / "broker", root / "workers"])
        )


@pytest.mark.timeout(30)
async def test_the_redis_cli_lines_work_as_printed(broker, worker_in, tmp_path):
    data = tmp_path / ".local" / "share" / "fleetchat"
    data.mkdir(parents=True)
    (data / "valkey.port").write_text(str(urlsplit(broker.config.redis_url).port))
    async with worker_in(model="pocket=echo"):
        await chat.answer(broker, request("a needle in the frames", model="pocket"))
        async with chat.ask(broker, request("/echo 200 50ms", model="pocket", keep=False)) as frames:
            await frames.take()
            script = "set -e\n" + "\n".join(f"{line}\necho ---" for line in block("redis-cli")).replace(
                "timeout 5", "timeout 1 "
            )
            script = script.replace("timeout 1  redis-cli", "! timeout 1 redis-cli")
            env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
            done = await asyncio.to_thread(
                subprocess.run,
                ["bash", "-c", script],
                env=env,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^\(?error|ERR|NOAUTH|WRONGTYPE", done.stdout + done.stderr, re.M | re.I)
    parts = [part.strip() for part in done.stdout.split("---\n")]
    alive, _, worker, waiting, beside, running, _, state, frames_, said, followed = parts[1:12]
    assert alive
    assert "slots" in worker
    assert (waiting, beside) == ("0", "0")
    assert len(running) == 26
    assert "epoch" in state
    assert running in frames_
    assert said.startswith("1")
    assert "subscribe" in followed
    assert running in followed, "frames that came while it followed"


@pytest.mark.timeout(30)
async def test_the_curl_line_works_as_printed(broker, valkey, worker_in, tmp_path):
    port = embedded.free_port()
    (command,) = block("curl")
    with web(valkey, tmp_path, port):
        await asyncio.to_thread(wait_for_port, port)
        async with worker_in(model="pocket=echo"):
            line = ["bash", "-c", command.replace(":8080", f":{port}")]
            done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "Hello!"


def test_ci_runs_the_readmes_second_command():
    ci = (Path(__file__).parents[1] / ".ci" / "run").read_text()
    assert "<!-- test -->" in ci
    assert "README.md" in ci
    (command,) = block("test")
    for tool in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert tool in command
