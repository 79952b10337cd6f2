import asyncio
import gzip
import json
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import battles
from broker import keys, votelogs, votes
from broker.config import Config
from broker.connection import Broker
from broker.errors import RedisAway, SetupError, StorageFull
from broker.voteforms import ARENA_RANK, CLEAN, FASTCHAT, FORMS, OURS
from broker.votelogs import Archived, Exported, Report
from faults.harness import Server
from helpers import eventually

YEAR_2100 = 4_102_444_800_000


async def bring(broker: Broker, file: Path, wrong: list[tuple[int, str]] | None = None) -> Report:
    complaints: list[tuple[int, str]] = [] if wrong is None else wrong
    return await votelogs.bring(broker, file, lambda line, why: complaints.append((line, why)), lambda _: None)


async def text_of(broker: Broker, form: str) -> str:
    return "".join([part async for part in votelogs.texts(broker, form, Exported())])


async def lines_of(broker: Broker, form: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await text_of(broker, form)).splitlines()]


async def all_votes(broker: Broker) -> list[votes.Vote]:
    return [vote async for batch in votes.read(broker) for _, vote in batch]


def without_ip(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record | {"ip": ""} for record in records]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """300 votes, more than come in one round trip, with chats and with what is no record between them."""
    records: list[dict[str, Any] | str] = [battles.vote(n, more={"n": n}) for n in range(300)]
    records[10:10] = [battles.chat(1), "", "{broken", '["a list"]']
    records += [battles.vote(1, states=[]), battles.chat(2)]
    return battles.log(tmp_path / "2023-04-01-conv.json", records)


async def test_fastchats_log_comes_in_and_goes_out_the_same(broker, log):
    wrong: list[tuple[int, str]] = []
    report = await bring(broker, log, wrong)
    assert report == Report(new=300, others=2, skipped=3)
    assert [line for line, _ in wrong] == [13, 14, 305]
    exported = await lines_of(broker, FASTCHAT)
    assert without_ip(exported) == without_ip([battles.vote(n, more={"n": n}) for n in range(300)])


async def test_no_address_is_anywhere_in_redis_and_one_voter_stays_one(broker, log):
    await bring(broker, log)
    held = [repr(await broker.redis.xrange(keys.VOTES))]
    held += [json.dumps(votes.decompress(blob)) for blob in await broker.redis.hvals(keys.VOTED)]
    assert len(held) == 301
    assert "203.0.113" not in "".join(held)
    voters = {vote.voter: battles.vote(n)["ip"] for n, vote in enumerate(await all_votes(broker))}
    assert len(voters) == len(set(voters.values())) == len({battles.vote(n)["ip"] for n in range(300)})


async def test_the_same_file_again_counts_once_also_compressed_and_at_once(broker, log, tmp_path):
    packed = tmp_path / "log.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    reports = await asyncio.gather(bring(broker, log), bring(broker, packed), bring(broker, log))
    assert sum(report.new for report in reports) == 300
    assert await bring(broker, log) == Report(known=300, others=2, skipped=3)
    assert len(await all_votes(broker)) == len(await broker.redis.hkeys(keys.VOTED)) == 300


@pytest.mark.parametrize("form", FORMS)
async def test_what_is_exported_is_known_here_and_whole_in_another_fleet(broker, log, tmp_path, form):
    await bring(broker, log)
    before, texts = await all_votes(broker), {form: await text_of(broker, form) for form in FORMS}
    file = tmp_path / "exported"
    file.write_text(texts[form])
    assert await bring(broker, file) == Report(known=300)
    await broker.redis.flushall()
    assert await bring(broker, file) == Report(new=300)
    assert await text_of(broker, form) == texts[form]
    after = await all_votes(broker)
    if form == ARENA_RANK:  # whose rows have no conversations
        after = [replace(vote, categories=old.categories) for vote, old in zip(after, before, strict=True)]
    assert after == [replace(vote, at=new.at) for vote, new in zip(before, after, strict=True)]


async def test_rows_that_are_alike_all_count_and_those_of_another_file_too(broker, tmp_path):
    rows = "model_a,model_b,winner\n" + "x,y,model_a\n" * 3 + "y,x,both_bad\n"
    for name, text in (("one.csv", rows), ("same.csv", rows), ("two.csv", rows + "y,x,tie\n")):
        (tmp_path / name).write_text(text)
    assert [(await bring(broker, tmp_path / f"{name}.csv")).new for name in ("one", "same", "two")] == [4, 0, 5]
    found = Counter((vote.a, vote.b, vote.winner) for vote in await all_votes(broker))
    assert found == {("x", "y", "a"): 6, ("y", "x", "bad"): 2, ("y", "x", "tie"): 1}


async def test_cleaned_battles_are_one_list_as_fastchats_programs_read_it(broker, log):
    assert json.loads(await text_of(broker, CLEAN)) == []
    await bring(broker, log)
    found = json.loads(await text_of(broker, CLEAN))
    assert len(found) == 300
    for n, battle in enumerate(found):
        states = battles.vote(n)["states"]
        assert (battle["model_a"], battle["model_b"]) == tuple(state["model_name"] for state in states)
        assert [[message["content"] for message in battle[f"conversation_{side}"]] for side in "ab"] == [
            [text for _, text in state["messages"]] for state in states
        ]
        assert battle["winner"] in ("model_a", "model_b", "tie", "tie (bothbad)")
        assert {"judge", "turn", "anony", "language", "tstamp", "question_id"} <= battle.keys()


async def test_a_form_that_is_none_is_a_sentence(broker):
    with pytest.raises(SetupError, match="fleetchat, fastchat, clean, arena-rank"):
        await text_of(broker, "pickle")


async def test_old_conversations_go_to_a_file_and_come_back(broker, log, tmp_path):
    await bring(broker, log)
    before, everything = await all_votes(broker), await text_of(broker, OURS)
    middle = before[120].at
    report = await votelogs.archive(broker, tmp_path / "old", middle, lambda _: None)
    assert report.votes == 120
    assert report.file.stat().st_mode & 0o777 == 0o600
    assert await all_votes(broker) == before
    held = await votes.said(broker, [vote.battle for vote in before])
    assert [said is None for said in held] == [True] * 120 + [False] * 180
    assert report.bytes_in_file == report.file.stat().st_size
    assert len(await lines_of(broker, FASTCHAT)) == 180
    assert await votelogs.archive(broker, tmp_path / "old", middle, lambda _: None) == Archived()
    assert await bring(broker, log.with_name("old") / report.file.name) == Report(known=120, restored=120)
    assert await text_of(broker, OURS) == everything


async def test_a_conversation_stays_in_redis_until_its_file_is_on_the_disk(broker, log, tmp_path, monkeypatch):
    await bring(broker, log)
    held = await broker.redis.hgetall(keys.VOTED)
    synced = 0

    def fails(handle: int) -> None:
        nonlocal synced
        synced += 1
        if synced == 3:  # the folder, the first 200, then these
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(SetupError, match="cannot be written: No space left on device"):
        await votelogs.archive(broker, tmp_path / "old", YEAR_2100, lambda _: None)
    now = await broker.redis.hgetall(keys.VOTED)
    gone = {battle for battle, blob in now.items() if not blob}
    assert len(gone) == 200
    assert all(now[battle] == held[battle] for battle in held.keys() - gone)
    (file,) = (tmp_path / "old").iterdir()
    await bring(broker, file)
    assert await broker.redis.hgetall(keys.VOTED) == held


async def test_a_full_redis_takes_no_import_and_can_still_be_archived(broker, log, tmp_path):
    await bring(broker, log)
    more = battles.log(tmp_path / "more", [battles.vote(n) for n in range(300, 400)])
    used = (await broker.redis.info("memory"))["used_memory"]
    await broker.redis.config_set("maxmemory", used // 2)
    try:
        with pytest.raises(StorageFull):
            await bring(broker, more)
        assert (await votelogs.archive(broker, tmp_path / "old", YEAR_2100, lambda _: None)).votes == 300
    finally:
        await broker.redis.config_set("maxmemory", 0)
    assert (await bring(broker, more)).new == 100


@pytest.fixture
async def fleet(config: Config, tmp_path: Path) -> AsyncIterator[tuple[Server, Broker]]:
    """A server that a test may kill, and a broker at it."""
    folder = tmp_path / "data"
    folder.mkdir()
    server = Server(folder)
    try:
        async with Broker.open(replace(config, redis_url=server.url)) as broker:
            yield server, broker
    finally:
        server.kill()


@pytest.mark.timeout(60)
async def test_redis_restarts_in_the_middle_of_an_import_and_it_goes_on_without_loss(fleet, tmp_path):
    server, broker = fleet
    file = battles.log(tmp_path / "log", [battles.vote(n) for n in range(2000)])
    importing = asyncio.create_task(bring(broker, file))
    await eventually(lambda: _some(broker), 20)
    await asyncio.to_thread(server.restart)
    assert (await importing).again
    await _all_are_there(broker)


@pytest.mark.timeout(60)
async def test_redis_dies_in_the_middle_of_an_import_and_another_one_has_every_vote_once(fleet, tmp_path):
    server, broker = fleet
    file = battles.log(tmp_path / "log", [battles.vote(n) for n in range(2000)])
    importing = asyncio.create_task(bring(broker, file))
    await eventually(lambda: _some(broker), 20)
    await asyncio.to_thread(server.kill)
    with pytest.raises(RedisAway):
        await importing
    await asyncio.to_thread(server.start)
    report = await bring(broker, file)
    assert report.new + report.known == 2000
    assert report.new > 0
    await _all_are_there(broker)


async def _some(broker: Broker) -> bool:
    """Whether an import is in its middle."""
    return 200 <= int(await broker.redis.xlen(keys.VOTES)) < 2000


async def _all_are_there(broker: Broker) -> None:
    found = [vote.battle for vote in await all_votes(broker)]
    assert len(found) == len(set(found)) == 2000
    assert all(await votes.said(broker, found))


def test_reading_a_long_log_needs_little_memory(tmp_path):
    one = json.dumps(battles.vote(1))
    file = tmp_path / "long"
    with open(file, "w") as stream:
        for n in range(3000):
            stream.write(one.replace("1680000037.0101", f"{1680000000 + n}.5") + "\n")
    tracemalloc.start()
    found = sum(1 for _ in votelogs.found(file, b"salt", Report(), lambda line, why: None))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == 3000
    assert file.stat().st_size > 2_000_000
    assert most < 1_000_000


def test_a_file_that_is_none_is_a_sentence(tmp_path):
    with pytest.raises(SetupError):
        list(votelogs.found(tmp_path, b"salt", Report(), lambda line, why: None))
