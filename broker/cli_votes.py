"""`fleetchat votes`: votes out of files and into files."""

import gzip
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.markup import escape
from rich.status import Status

from broker import votelogs
from broker.config import Config
from broker.connection import Broker
from broker.console import DataOption, err, find_fleet, out, reach, run
from broker.errors import SetupError
from broker.voteforms import FORMS, OURS

app = typer.Typer(no_args_is_help=True, help="Bring votes in, write them out, and move old conversations to files.")

TOLD = 100  # lines that are skipped, each with its reason; of further ones only the number
Files = Annotated[
    list[Path], typer.Argument(help="Votes: ours, FastChat's logs or cleaned battles, arena-rank's; .gz, too.")
]


class Complaints:
    """Says of each line of a file that is skipped why it is; of too many, only how many."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._reasons = Counter[str]()

    def __call__(self, line: int, why: str) -> None:
        """One line."""
        self._reasons[why] += 1
        if self._reasons.total() <= TOLD:
            err.print(escape(f"{self._file}, line {line}: {why}"))

    def end(self) -> None:
        """What was not said."""
        if self._reasons.total() > TOLD:
            often = ", ".join(f"{why} ({n})" for why, n in self._reasons.most_common(5))
            err.print(
                escape(f"{self._file}: {self._reasons.total() - TOLD} more lines are skipped. Most often: {often}")
            )


@app.command("import")
def import_votes(files: Files, data: DataOption = None) -> None:
    """Take the votes of files. Whatever was taken before counts once, so an import may be broken off and run again."""
    run(_import(find_fleet(data), files))


async def _import(config: Config, files: Sequence[Path]) -> None:
    async with Broker.open(config) as broker:
        await reach(broker)
        for file in files:
            complaints = Complaints(file)
            with err.status(escape(f"{file} …")) as status:

                def show(so_far: votelogs.Report, status: Status = status, file: Path = file) -> None:
                    status.update(escape(f"{file}: {_words(so_far)}"))

                report = await votelogs.bring(broker, file, complaints, show)
            complaints.end()
            again = " Redis was restarted meanwhile, so the file was read twice." if report.again else ""
            out.print(escape(f"{file}: {_words(report)}.{again}"))


def _words(report: votelogs.Report) -> str:
    said = [f"new votes: {report.new}", f"known ones: {report.known}"]
    said += [f"of them with their conversations again: {report.restored}"] if report.restored else []
    said += [f"records that are no votes: {report.others}"] if report.others else []
    said += [f"skipped lines: {report.skipped}"] if report.skipped else []
    return ", ".join(said)


@app.command("export")
def export_votes(
    file: Annotated[
        Path | None, typer.Argument(help="Where to; .gz is compressed.", show_default="standard output")
    ] = None,
    form: Annotated[str, typer.Option("--format", help=", ".join(FORMS))] = OURS,
    data: DataOption = None,
) -> None:
    """Write all votes: in FastChat's log format, as its cleaned battles, as arena-rank's rows, or in ours with all there is."""
    if form not in FORMS:
        raise SetupError(f"{form} is no format of votes. There are {', '.join(FORMS)}.")
    run(_export(find_fleet(data), file, form))


async def _export(config: Config, file: Path | None, form: str) -> None:
    async with Broker.open(config) as broker:
        await reach(broker)
        report = votelogs.Exported()
        if file is None:
            await _write(broker, sys.stdout, form, report)
        else:
            part = file.with_name(file.name + ".part")  # a file of this name is a whole one
            try:
                with _open(part, file.suffix == ".gz") as stream:
                    await _write(broker, stream, form, report)
                os.replace(part, file)
            except OSError as error:
                raise SetupError(f"{file} cannot be written: {error.strerror}.") from None
    err.print(escape(f"{report.votes} votes, {report.without} of them without conversations."))
    if report.left_out:
        err.print(
            f"{report.left_out} votes are left out: the format needs their conversations, and these are in files of "
            "`fleetchat votes archive`, or were never here. An import of those files brings them back."
        )


def _open(file: Path, packed: bool) -> TextIO:
    """For its owner's eyes: it has what people said."""
    handle = os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    if packed:
        return gzip.open(os.fdopen(handle, "wb"), "wt", encoding="utf-8", newline="")
    return os.fdopen(handle, "w", encoding="utf-8", newline="")


async def _write(broker: Broker, stream: TextIO, form: str, report: votelogs.Exported) -> None:
    async for text in votelogs.texts(broker, form, report):
        stream.write(text)
    stream.flush()


@app.command("archive")
def archive_votes(
    older: Annotated[str, typer.Option(help="Which conversations: of votes so many days old (90d), or before a date.")],
    to: Annotated[Path | None, typer.Option(help="The files' folder.", show_default="votes in the data folder")] = None,
    data: DataOption = None,
) -> None:
    """Move what was said in old battles to a file, and free its memory. The votes stay and count; import brings all back."""
    before = _before(older)
    config = find_fleet(data)
    run(_archive(config, to or (data or config.data) / "votes", before))


async def _archive(config: Config, folder: Path, before: int) -> None:
    async with Broker.open(config) as broker:
        await reach(broker)
        with err.status("…") as status:
            report = await votelogs.archive(
                broker, folder, before, lambda so_far: status.update(f"{so_far.votes} conversations")
            )
    if report.file is None:
        out.print("There is nothing so old.")
        return
    size = f"{report.bytes_in_redis} bytes in Redis, {report.bytes_in_file} in the file"
    out.print(escape(f"{report.votes} conversations are now in {report.file}: {size}."))


def _before(text: str) -> int:
    """Milliseconds since 1970 of `90d` ago or of a date; raises SetupError if it is none."""
    if found := re.fullmatch(r"(\d{1,5})d", text):
        return int((time.time() - int(found[1]) * 86_400) * 1000)
    try:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        raise SetupError(f"{text!r} is no time. Write 90d or 2030-12-31.") from None
