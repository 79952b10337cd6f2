"""`fleetchat votes`, as a person types it."""

import asyncio
import gzip
import json
import subprocess
import sys
from pathlib import Path

import battles
import pytest

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
