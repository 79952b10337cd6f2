"""`fleetchat votes` and `fleetchat leaderboard`, as a person types them."""

import asyncio
import csv
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import battles
from broker import keys
from broker.connection import Broker
from fleet_process import environment

COMMAND = str(Path(sys.executable).with_name("fleetchat"))

pytestmark = pytest.mark.timeout(60)


async def fleetchat(broker: Broker, *arguments: object) -> subprocess.CompletedProcess[str]:
    env = environment(broker.config.redis_url, data=broker.config.data) | {"COLUMNS": "80"}
    command = [COMMAND, *map(str, arguments)]
    return await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return battles.log(tmp_path / "2023-04-01-conv.json", [*(battles.vote(n) for n in range(20)), "{", battles.chat(1)])


async def test_import_says_what_it_took_and_which_lines_it_did_not(broker, log):
    done = await fleetchat(broker, "votes", "import", log)
    assert done.stdout == f"{log}: new votes: 20, known ones: 0, records that are no votes: 1, skipped lines: 1.\n", (
        done
    )
    assert f"{log}, line 21: this is not JSON" in done.stderr
    assert done.returncode == 0
    again = await fleetchat(broker, "votes", "import", log)
    assert "new votes: 0, known ones: 20" in again.stdout


async def test_of_many_bad_lines_the_first_are_told_and_the_rest_are_counted(broker, tmp_path):
    done = await fleetchat(broker, "votes", "import", battles.log(tmp_path / "bad", ["{"] * 250))
    assert done.stderr.count(f"{tmp_path / 'bad'}, line") == 100
    assert "150 more lines are skipped. Most often: this is not JSON" in done.stderr
    assert "skipped lines: 250" in done.stdout


async def test_export_goes_to_a_file_or_to_standard_output(broker, log, tmp_path):
    await fleetchat(broker, "votes", "import", log)
    piped = await fleetchat(broker, "votes", "export", "--format", "fastchat")
    assert [json.loads(line)["tstamp"] for line in piped.stdout.splitlines()] == [
        battles.vote(n)["tstamp"] for n in range(20)
    ]
    packed = tmp_path / "votes.jsonl.gz"
    done = await fleetchat(broker, "votes", "export", packed)
    assert "20 votes, 0 of them without conversations." in done.stderr
    assert len(gzip.decompress(packed.read_bytes()).splitlines()) == 20
    assert packed.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.glob("votes*")} == {packed.name}
    packed.write_text("precious")
    refused = await fleetchat(broker, "votes", "export", packed)
    assert (refused.returncode, packed.read_text()) == (2, "precious")
    assert "is there already" in refused.stderr
    await fleetchat(broker, "votes", "export", packed, "--force")
    assert len(gzip.decompress(packed.read_bytes()).splitlines()) == 20


async def test_whoever_reads_an_export_may_have_enough(broker, tmp_path):
    await fleetchat(broker, "votes", "import", battles.log(tmp_path / "log", [battles.vote(n) for n in range(300)]))
    env = environment(broker.config.redis_url)
    command = ["bash", "-o", "pipefail", "-c", f"{COMMAND} votes export | head -1"]
    done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


async def test_archive_moves_conversations_and_import_brings_them_back(broker, log, tmp_path):
    await fleetchat(broker, "votes", "import", log)
    done = await fleetchat(broker, "votes", "archive", "--older", "30d")
    (file,) = (broker.config.data / "votes").iterdir()
    assert f"20 conversations are now in {file}: " in done.stdout, done
    assert set(await broker.redis.hvals(keys.VOTED)) == {b""}
    exported = await fleetchat(broker, "votes", "export", "--format", "fastchat")
    assert (exported.stdout, exported.returncode) == ("", 0)
    assert "20 votes are left out" in exported.stderr
    assert "There is nothing so old." in (await fleetchat(broker, "votes", "archive", "--older", "2026-01-31")).stdout
    back = await fleetchat(broker, "votes", "import", file)
    assert "known ones: 20, of them with their conversations again: 20" in back.stdout


async def test_a_mistake_is_a_sentence_and_exit_code_2(broker, tmp_path):
    for arguments, why in (
        (("import", tmp_path / "none"), "cannot be read: No such file or directory"),
        (("export", "--format", "pickle"), "There are fleetchat, fastchat, clean, arena-rank."),
        (("export", tmp_path / "none" / "votes"), "cannot be written: No such file or directory"),
        (("archive", "--older", "soon"), "'soon' is no time. Write 90d or 2030-12-31."),
    ):
        done = await fleetchat(broker, "votes", *arguments)
        assert done.returncode == 2
        assert why in done.stderr.replace("\n", " "), done
        assert "Traceback" not in done.stderr


async def test_a_leaderboard_from_files_is_a_table_json_or_csv_and_needs_no_fleet(broker, tmp_path):
    file = tmp_path / "votes.csv"
    rows = ["strong,weak,model_a"] * 60 + ["weak,strong,model_a"] * 20 + ["weak,strong,tie"] * 10
    file.write_text("\n".join(["model_a,model_b,winner", *rows, "strong,weak"]))
    (tmp_path / "arena.toml").write_text('[ratings]\nanchor = { model = "weak", score = 1000 }')
    away = {"url": "redis://127.0.0.1:1/0", "arena_file": tmp_path / "arena.toml"}
    shown = await leaderboard(away, file)
    assert re.search(r"^ +1 +strong +1\d\d\d +\+\d+ / -\d+ +90 +72\.2 %$", shown.stdout, re.M), shown
    assert re.search(r"^ +2 +weak +1000 ", shown.stdout, re.M)
    assert "90 blind votes; rank" in shown.stdout
    assert f"{file}, line 92: the row has not as many fields as the heading" in shown.stderr
    board = json.loads((await leaderboard(away, file, "--json")).stdout)
    assert [row["name"] for row in board["models"]] == ["strong", "weak"]
    table = list(csv.DictReader((await leaderboard(away, file, "--csv")).stdout.splitlines()))
    assert [(row["name"], row["votes"], row["wins"]) for row in table] == [("strong", "90", "60"), ("weak", "90", "20")]


async def test_a_leaderboard_of_a_category_of_named_votes_too_with_style(tmp_path):
    log = battles.log(tmp_path / "log", [battles.vote(n) for n in range(400)])
    blind, both, chinese = [
        json.loads((await leaderboard({}, log, "--json", *options)).stdout)
        for options in ((), ("--named",), ("--category", "zh", "--style"))
    ]
    counts = [all(label == "" for label in battles.vote(n)["models"]) for n in range(400)]
    assert (blind["votes"], both["votes"]) == (sum(counts), 400)
    assert 0 < chinese["votes"] < blind["votes"]
    assert chinese["style_coefficients"].keys() == {"length", "headers", "lists", "bold"}
    none = await leaderboard({}, log, "--category", "klingon")
    assert none.returncode == 1
    assert f"No vote counts here. Votes that count, by category: all ({sum(counts)}), " in none.stderr


async def test_deprecated_models_are_in_the_table_when_asked_for(tmp_path):
    (tmp_path / "arena.toml").write_text('[ratings]\ndeprecated = ["koala-*"]')
    log = battles.log(tmp_path / "log", [battles.vote(n) for n in range(100)])
    settings = {"arena_file": tmp_path / "arena.toml"}
    assert "koala" not in (await leaderboard(settings, log)).stdout
    assert "koala" in (await leaderboard(settings, log, "--deprecated")).stdout


async def test_a_leaderboard_from_a_file_that_is_none_is_a_sentence(tmp_path):
    done = await leaderboard({}, tmp_path / "none")
    assert (done.returncode, done.stderr) == (2, f"{tmp_path / 'none'} cannot be read: No such file or directory.\n")


async def leaderboard(settings: dict[str, object], *arguments: object) -> subprocess.CompletedProcess[str]:
    env = environment(**{"url": "redis://127.0.0.1:1/0"} | settings) | {"COLUMNS": "200"}
    command = [COMMAND, "leaderboard", *map(str, arguments)]
    return await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True)
