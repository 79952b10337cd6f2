"""Votes into files and out of them: import, export, and the archive of what was said in old ones.

An import may be broken off anywhere and begun again: each vote is taken by one script, once, and is known by its battle's
id (see `broker.voteforms` for where a file's records have theirs from). Files are read and written a little at a time. The
archive removes a conversation from Redis only when its file is on the disk; an import of the file brings it back.
"""

import asyncio
import gzip
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from typing import Any

from redis.exceptions import NoScriptError

from broker import keys, secret, voteforms, votes
from broker.connection import Broker, redis_errors
from broker.errors import SetupError, StorageFull
from broker.votefiles import Wrong, digest, records
from broker.voteforms import FORMS, OURS, Found, NotOne, Said, Source, Unusable
from broker.votes import Vote, compress

BATCH = 200  # votes in one round trip, and in memory
GZIP_LEVEL = 9
TOLD = 100  # lines that are skipped, each with its reason; of further ones only the number

Complain = Callable[[int, str], None]
"""Is told the line of what is skipped, and why."""


class Complaints:
    """Says on standard error of each line of a file that is skipped why it is; of too many, only how many."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._count = 0
        self._reasons = Counter[str]()

    def __call__(self, line: int, why: str) -> None:
        """One line."""
        self._count += 1
        if why in self._reasons or len(self._reasons) < TOLD:
            self._reasons[why] += 1
        if self._count <= TOLD:
            print(f"{self._file}, line {line}: {why}", file=sys.stderr)

    def end(self) -> None:
        """What was not said."""
        if self._count > TOLD:
            often = ", ".join(f"{why} ({n})" for why, n in self._reasons.most_common(5))
            print(
                f"{self._file}: {self._count - TOLD} more lines are skipped. Most often: {often}",
                file=sys.stderr,
            )


@dataclass(slots=True)
class Report:
    """What has become of a file's records."""

    new: int = 0
    known: int = 0  # votes that were here already
    restored: int = 0  # of them those whose conversations are here again
    others: int = 0  # records of a log that are about something else
    skipped: int = 0
    again: bool = False  # Redis was restarted meanwhile, so the file was read twice; counted is the second time


def found(file: Path, salt: bytes, report: Report, complain: Complain, *, keep: bool = True) -> Iterator[Found]:
    """The votes in a file, with what was said if it is to be kept; and in `report` how many records are none.

    Raises:
        SetupError: it cannot be read.
    """
    line, of_file = 0, ""

    def unique() -> str:
        nonlocal of_file
        of_file = of_file or digest(file)
        return f"{of_file}:{line}"

    source = Source(salt, unique, keep)
    for line, record in records(file):
        try:
            if isinstance(record, Wrong):
                raise Unusable(record.why)
            one = voteforms.read(record, source)
        except NotOne:
            report.others += 1
        except Unusable as why:
            report.skipped += 1
            complain(line, str(why))
        else:
            yield one


async def bring(broker: Broker, file: Path, complain: Complain, progress: Callable[[Report], None]) -> Report:
    """Take all votes of a file.

    Raises:
        SetupError: it cannot be read.
        StorageFull, RedisAway: begin again later; what was taken stays, and counts once.
    """
    salt = secret.key(await secret.load(broker), secret.VOTERS)
    report = Report()
    while True:
        history = await _history(broker)
        await _bring(broker, found(file, salt, report, complain), report, progress)
        if history == await _history(broker):
            return report
        report, complain = Report(again=True), _silent  # the last second before it may be missing


async def _bring(broker: Broker, votes_in: Iterator[Found], report: Report, progress: Callable[[Report], None]) -> None:
    while batch := await asyncio.to_thread(lambda: [_packed(one) for one in islice(votes_in, BATCH)]):
        if broker.nearly_full:
            raise StorageFull(
                "Redis is nearly full, and the votes of the fleet itself come first. Give it more memory, or move old "
                "conversations to files by `fleetchat votes archive`; then import the file again."
            )
        for outcome in await _record(broker, batch):
            report.new += outcome == 1
            report.known += outcome != 1
            report.restored += outcome == 2
        progress(report)


def _silent(line: int, why: str) -> None:
    """What is wrong with the file has been said."""


def _packed(one: Found) -> list[Any]:
    return [one.vote.battle, compress(one.said) if one.said else b"", *one.vote.encode()]


async def _record(broker: Broker, batch: Sequence[list[Any]]) -> list[int]:
    script = broker.scripts.record
    while True:
        async with redis_errors():
            async with broker.redis.pipeline(transaction=False) as pipe:
                for arguments in batch:
                    pipe.evalsha(script.sha, 0, *arguments)
                try:
                    outcomes: list[int] = await pipe.execute()
                    return outcomes
                except NoScriptError:
                    await broker.redis.script_load(script.script)


async def _history(broker: Broker) -> str:
    """The name of the data's history: another one after a restart or a fail-over."""
    async with redis_errors():
        return str((await broker.redis.info("replication"))["master_replid"])


async def stored(broker: Broker) -> AsyncIterator[tuple[Vote, Said | None]]:
    """All votes, each with what was said unless that is in a file."""
    async for batch in votes.read(broker, batch=BATCH):
        conversations = await votes.said(broker, [vote.battle for _, vote in batch])
        for (_, vote), said in zip(batch, conversations, strict=True):
            yield vote, said


@dataclass(slots=True)
class Exported:
    """What an export has written."""

    votes: int = 0
    without: int = 0  # of them those without their conversations, which are in files or were never here
    left_out: int = 0  # votes that the form cannot have without one


async def texts(broker: Broker, form: str, report: Exported) -> AsyncIterator[str]:
    """All votes in a form, as the parts of one file.

    Raises:
        SetupError: there is no such form.
    """
    if form not in FORMS:
        raise SetupError(f"{form} is no form of votes. There are {', '.join(FORMS)}.")
    opening, between, end = ("[\n", ",\n", "\n]\n") if form == voteforms.CLEAN else ("", "\n", "\n")
    async for vote, said in stored(broker):
        record = voteforms.write(form, vote, said)
        if record is None:
            report.left_out += 1
            continue
        yield (between if report.votes else opening) + _line(record)
        report.votes += 1
        report.without += not said
    if report.votes or opening:
        yield end if report.votes else opening + end


def _line(record: dict[str, Any]) -> str:
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as it came in
        return json.dumps(record)
    return line


@dataclass(slots=True)
class Archived:
    """What has been moved out of Redis."""

    file: Path | None = None
    votes: int = 0
    bytes_in_redis: int = 0
    bytes_in_file: int = 0


async def archive(broker: Broker, folder: Path, before: int, progress: Callable[[Archived], None]) -> Archived:
    """Move what was said in votes before a time (ms) to a new file in a folder. The votes stay.

    Raises:
        SetupError: the folder cannot be written.
    """
    report = Archived()
    async for batch in votes.read(broker, batch=BATCH):
        old = [vote for _, vote in batch if vote.at < before]
        async with redis_errors():
            blobs = await broker.redis.hmget(keys.VOTED, [vote.battle for vote in old]) if old else []
        held = [(vote, blob) for vote, blob in zip(old, blobs, strict=True) if blob]
        if not held:
            continue
        if report.file is None:
            report.file = await asyncio.to_thread(_new_file, folder)
        report.bytes_in_file += await asyncio.to_thread(_append, report.file, held)
        async with redis_errors():
            await broker.scripts.archive(args=[vote.battle for vote, _ in held])
        report.votes += len(held)
        report.bytes_in_redis += sum(len(blob) for _, blob in held)
        progress(report)
    return report


def _new_file(folder: Path) -> Path:
    """A file of this name alone, for its owner's eyes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for n in count(1):
            file = folder / f"votes-{datetime.now(UTC):%Y%m%dT%H%M%S}{f'-{n}' if n > 1 else ''}.jsonl.gz"
            try:
                os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:
                continue
            _sync(folder)
            return file
    except OSError as error:
        raise SetupError(f"{folder} cannot be written: {error.strerror}.") from None
    raise AssertionError


def _append(file: Path, held: Sequence[tuple[Vote, bytes]]) -> int:
    """Write votes as one gzip member, which can be read whatever comes after it; back once it is on the disk."""
    lines = [_line(voteforms.write(OURS, vote, votes.decompress(blob)) or {}) + "\n" for vote, blob in held]
    member = gzip.compress("".join(lines).encode(), GZIP_LEVEL)
    try:
        with open(file, "ab") as stream:
            stream.write(member)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise SetupError(f"{file} cannot be written: {error.strerror}. What is not in it is still in Redis.") from None
    return len(member)


def _sync(folder: Path) -> None:
    """Have the folder's list of files on the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
