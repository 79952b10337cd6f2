"""`fleetchat votes` and `fleetchat leaderboard`: votes out of files and into files, and what they say of the models."""

import csv
import gzip
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.markup import escape
from rich.status import Status

from broker import votelogs
from broker.config import Config
from broker.connection import Broker
from broker.console import DataOption, err, find_fleet, new_table, out, reach, run
from broker.errors import FleetError, SetupError
from broker.voteforms import FORMS, OURS

app = typer.Typer(no_args_is_help=True, help="Bring votes in, write them out, and move old conversations to files.")

COLUMNS = (
    "rank", "name", "score", "lower", "upper", "votes", "wins", "losses", "ties", "win_rate", "average_win_rate", "elo", "boot_lower",
    "boot_upper", "organisation", "licence", "mt_bench", "mmlu", "cutoff", "deprecated", "preliminary",
)  # fmt: skip

Files = Annotated[
    list[Path], typer.Argument(help="Votes: ours, FastChat's logs or cleaned battles, arena-rank's; .gz, too.")
]


@app.command("import")
def import_votes(files: Files, data: DataOption = None) -> None:
    """Take the votes of files. Whatever was taken before counts once, so an import may be broken off and run again."""
    run(_import(find_fleet(data), files))


async def _import(config: Config, files: Sequence[Path]) -> None:
    async with Broker.open(config) as broker:
        await reach(broker)
        for file in files:
            complaints = votelogs.Complaints(file)
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
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    data: DataOption = None,
) -> None:
    """Write all votes: in FastChat's log format, as its cleaned battles, as arena-rank's rows, or in ours with all there is."""
    if form not in FORMS:
        raise SetupError(f"{form} is no format of votes. There are {', '.join(FORMS)}.")
    if file is not None and file.is_file() and not force:
        raise SetupError(f"{file} is there already. Take another name, or --force to replace it.")
    run(_export(find_fleet(data), file, form))


async def _export(config: Config, file: Path | None, form: str) -> None:
    async with Broker.open(config) as broker:
        await reach(broker)
        report = votelogs.Exported()
        if file is None:
            try:
                await _write(broker, sys.stdout, form, report)
            except BrokenPipeError:  # its reader has enough, as `head` does; Python would complain once more at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return
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


def leaderboard(
    files: Files,
    category: Annotated[str, typer.Option(help="Only votes of a category: coding, math, zh …")] = "all",
    style: Annotated[bool, typer.Option("--style", help="Take length and formatting out of the ratings.")] = False,
    named: Annotated[bool, typer.Option("--named", help="Count votes on named models, too.")] = False,
    deprecated: Annotated[bool, typer.Option("--deprecated", help="Show deprecated models in the table, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All that is known of the board.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="A row for each model.")] = False,
) -> None:
    """Compute a leaderboard from files of votes; no fleet is needed. A vote that is in several of them counts once."""
    if find_spec("numpy") is None:
        raise SetupError("Ratings need numpy: pip install 'fleetchat[worker]'.")
    options = ["--category", category, *["--style"] * style, *["--named"] * named]
    command = [sys.executable, "-m", "workers.leaderboard_file", *options, "--", *map(str, files)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    except KeyboardInterrupt:
        sys.exit(130)
    if done.returncode:
        raise SystemExit(done.returncode)  # it has said why
    if as_json:
        print(done.stdout.decode(), end="")
        return
    board = json.loads(done.stdout)
    if as_csv:
        _print_csv(board)
    else:
        _print_board(board, deprecated)


def _print_csv(board: dict[str, Any]) -> None:
    rows = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
    rows.writeheader()
    rows.writerows(board["models"])


def _print_board(board: dict[str, Any], deprecated: bool) -> None:
    models = [row for row in board["models"] if deprecated or not row["deprecated"]]
    if not models:
        there = ", ".join(f"{one['name']} ({one['votes']})" for one in board["categories"])
        raise FleetError(f"No vote counts here. Votes that count, by category: {there}.")
    known = [name for name in ("organisation", "licence") if any(row[name] for row in models)]
    table = new_table("rank", "model", "score", "95 %", "votes", "won", *known)
    for column in (table.columns[i] for i in (0, 2, 3, 4, 5)):
        column.justify = "right"
    for row in models:
        interval = f"+{row['upper'] - row['score']:.0f} / -{row['score'] - row['lower']:.0f}"
        table.add_row(
            str(row["rank"]), escape(row["name"]) + (" [dim](few votes)[/dim]" if row["preliminary"] else ""),
            f"{row['score']:.0f}", interval, str(row["votes"]), f"{100 * row['win_rate']:.1f} %",
            *(escape(row[name]) for name in known),
        )  # fmt: skip
    out.print(table)
    kinds = "blind and named" if board["named"] else "blind"
    control = ", style controlled" if board["style"] else ""
    out.print(
        f"[dim]{board['votes']} {kinds} votes{control}; rank: 1 + how many are better beyond their 95 % intervals.[/dim]"
    )
    if aside := _aside(board["aside"]):
        out.print(f"[dim]Not counted: {aside}.[/dim]")


def _aside(aside: dict[str, Any]) -> str:
    what = {
        "late": "after the names were known",
        "leaks": "where an answer says who it is",
        "over_cap": "over a voter's share of a day",
        "votes_of_voters": f"of {len(aside['voters'])} voters whose votes are no fair ones",
    }
    return ", ".join(f"{aside[name]} {text}" for name, text in what.items() if aside[name])
