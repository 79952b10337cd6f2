"""The `fleetchat` command. It starts the other floors as processes and imports neither.

An error is one sentence on standard error: exit code 2 when the command cannot start, 1 when it failed.
"""

import asyncio
import logging
import os
import re
import shutil
import signal
import sys
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from broker import accounts, chat, cli_votes, fleet, registry, sources
from broker.config import Config, data_folder
from broker.connection import Broker
from broker.console import DataOption, err, find_fleet, new_table, out, reach, run
from broker.errors import BadRequest, FleetError, SetupError
from broker.logs import hide
from broker.messages import ChatRequest, Message, Sampling
from broker.registry import ModelState, WorkerState

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Chat with your own models, over a queue.",
)
keys_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke keys of the API.")
app.add_typer(keys_app, name="keys")
app.add_typer(cli_votes.app, name="votes")
app.command("leaderboard")(cli_votes.leaderboard)

LOOK_SECONDS = 1.0
DRAIN_LOOK_SECONDS = 0.1
SLACK_SECONDS = 5.0  # beyond the time that a worker has to drain
COUNTS = ("asked", "refused", "done", "stopped", "failed", "requeued", "crashed", "fenced")
WORDS = {  # in `counts:MODEL` -> the column that they are in; how else a request ended is an error's code
    "accepted": "asked",
    "refused": "refused",
    "ended:stop": "done",
    "ended:length": "done",
    "ended:tool_calls": "done",
    "ended:content_filter": "done",
    "ended:cancelled": "stopped",
    "ended:abandoned": "stopped",
    "requeued": "requeued",
    "crashed": "crashed",
    "fenced": "fenced",
}
SHOWN = 3  # names of a worker's models in its line


def main() -> None:
    """The console script: errors become one sentence and an exit code."""
    logging.getLogger("fleetchat").addHandler(
        logging.NullHandler()
    )  # the screen is for people; children have their logs
    try:
        app()
    except FleetError as error:
        err.print(escape(hide(str(error))))
        sys.exit(2 if isinstance(error, SetupError) else 1)


@app.command()
def up(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="What a worker serves: a folder, a hub id, pocket, echo, NAME=http://…, NAME=any; commas; repeats."
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address the web app listens on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port the web app listens on.", show_default="8080", min=1, max=65535)
    ] = None,
    data: DataOption = None,
    browser: Annotated[bool, typer.Option(help="Open the page when it is ready.")] = True,
) -> None:
    """Start a whole fleet on this machine: Valkey, a worker for each --model, and the web app."""
    changes: dict[str, Any] = {"host": host, "port": port, "data": data}
    config = replace(Config.from_env(), **{k: v for k, v in changes.items() if v is not None})
    groups = sources.for_fleet(model or list(filter(None, [config.model])), config.models_file)
    asyncio.run(_up(config, groups, browser))


async def _up(config: Config, groups: Sequence[fleet.Group], browser: bool) -> None:
    stop = asyncio.Event()
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    out.print("Starting …" if not out.is_terminal else "[dim]Starting … Ctrl-C stops it.[/dim]")
    watched = asyncio.create_task(_watch(config, groups, browser))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({watched, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not watched.done():
        out.print("[dim]Stopping …[/dim]")
        watched.cancel()
    stopped.cancel()
    result = (await asyncio.gather(watched, return_exceptions=True))[0]
    if isinstance(result, Exception):
        raise result
    out.print("Stopped.")


async def _watch(config: Config, groups: Sequence[fleet.Group], browser: bool) -> None:
    """The screen: the address and the models once they are there, then a line for each thing that changes."""
    async with fleet.running(config, groups, lambda line: out.print(f"[yellow]{escape(line)}[/yellow]")) as running:
        await running.wait_until_ready()
        states = await running.states()
        _print_screen(running, states)
        if browser and _has_display():
            webbrowser.open(running.url)
        told = {name: _state_text(s) for name, s in states.items()}
        jobs = running.jobs
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if running.web.gave_up.is_set():
                raise SetupError(running.web.last_words())
            if jobs and jobs.gave_up.is_set():
                out.print(f"[yellow]{escape(f'{jobs.name} does not run: {jobs.last_words()}')}[/yellow]")
                jobs = None
            try:
                states = await running.states()
            except FleetError:
                continue
            for name, state in states.items():
                text = _state_text(state)
                if text != told.get(name) and state.state != "loading":
                    out.print(f"{escape(name)}: {escape(text)}")
                told[name] = text


def _print_screen(running: fleet.Fleet, states: dict[str, ModelState]) -> None:
    url = hide(running.config.redis_url)
    width = max(len(m.name) for m in running.models)
    out.print(f"\n  [bold]FleetChat[/bold] is ready at [bold cyan]{running.url}[/bold cyan]\n")
    for model in running.models:
        state = states.get(model.name)
        known = state is not None and state.state != "gone"  # gone: from the last time, and its worker is starting
        out.print(f"  {escape(model.name):<{width}}  {escape(_state_text(state) if state and known else 'starting')}")
    redis_cli = (
        f"redis-cli -p {url.rpartition(':')[2].partition('/')[0]}"
        if url.startswith("redis://127.0.0.1:")
        else f"redis-cli -u {url}"
    )
    data = "" if running.config.data == data_folder() else f" --data {running.config.data}"
    model, file = running.models[0], running.config.models_file
    serves = f"FLEETCHAT_MODELS_FILE={file.resolve()} " if model.listed and file else ""
    serves = escape(f"{serves}FLEETCHAT_MODEL={model}")
    out.print(f"\n  look inside    {redis_cli}    {_program('fleetchat')} status --watch{escape(data)}")
    out.print(f"  add a worker   REDIS_URL={url} {hide(serves)} {_program('arq')} workers.Settings")
    out.print(f"  logs and data  {escape(str(running.config.data))}")
    out.print("  stop           Ctrl-C\n")


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again each second until Ctrl-C.")] = False,
    data: DataOption = None,
) -> None:
    """Show models, workers, busy slots, waiting requests and tokens a second."""
    run(_status(find_fleet(data), watch))


async def _status(config: Config, watch: bool) -> None:
    async with Broker.open(config) as broker:
        await reach(broker)
        if not watch:
            out.print(await _tables(broker))
            return
        with Live(console=out, auto_refresh=False) as live:
            while True:
                live.update(await _tables(broker), refresh=True)
                await asyncio.sleep(LOOK_SECONDS)


async def _tables(broker: Broker) -> Table:
    models, workers = await registry.models(broker), await registry.workers(broker)
    grid = Table.grid()
    for table in (_model_table(models), _worker_table(workers), _count_table(await registry.counts(broker))):
        grid.add_row(table)
        grid.add_row("")
    return grid


def _model_table(models: list[ModelState]) -> Table:
    table = new_table("model", "state", "workers", "busy", "slots", "waiting", "tokens/s")
    for m in models:
        shown = m.to_map()
        table.add_row(
            escape(f"{m.card.name} on {m.card.parent}" if m.card.parent else m.card.name),
            escape(_state_text(m)),
            *(str(shown[k]) for k in ("workers", "running", "slots", "waiting", "tokens_per_s")),
        )
    if not models:
        table.add_row("none yet", *[""] * 6)
    return table


def _worker_table(workers: list[WorkerState]) -> Table:
    table = new_table("worker", "models", "state", "busy", "slots", "tokens/s", "device", "pid")
    for w in workers:
        names, more = w.models[:SHOWN], len(w.models) - SHOWN
        served = " ".join([*names, f"+{more}"] if more > 0 else names)
        values = [w.worker_id, served, *(w.fields.get(k, "") for k in ("state", "busy", "slots", "tokens_per_s"))]
        device = " ".join(filter(None, (w.fields.get("device"), w.fields.get("dtype"))))
        table.add_row(*map(escape, [*values, device, w.fields.get("pid", "")]))
    if not workers:
        table.add_row("none", *[""] * 7)
    return table


def _count_table(counts: dict[str, dict[str, int]]) -> Table:
    table = new_table("model", *COUNTS)
    table.title, table.title_justify = "since the first start", "left"
    for model, fields in counts.items():
        sums = dict.fromkeys(COUNTS, 0)
        for field, number in fields.items():
            word = field.partition(":")[0]
            if column := WORDS.get(field) or WORDS.get(word) or ("failed" if word == "ended" else None):
                sums[column] += number
        table.add_row(escape(model), *map(str, sums.values()))
    return table


@app.command()
def drain(
    worker: Annotated[str, typer.Argument(help="A worker's id as `fleetchat status` shows it, or a part of it.")],
    data: DataOption = None,
) -> None:
    """Let one worker finish what it writes, or hand it over, and end."""
    run(_drain(find_fleet(data), worker))


async def _drain(config: Config, part: str) -> None:
    async with Broker.open(config) as broker:
        await reach(broker)
        worker_id = _choose(await registry.workers(broker), part).worker_id
        patience, busy = config.drain_seconds + SLACK_SECONDS, 0.0
        deadline = time.monotonic() + patience
        missed = 0
        while missed < 2:  # it leaves the registry and comes back as draining, so one look without it says nothing
            here = [w for w in await registry.workers(broker) if w.worker_id == worker_id]
            missed = 0 if here else missed + 1
            busy = max(busy, *(w.number("busy") for w in here), 0.0)  # it sends a heartbeat as it begins to drain
            if time.monotonic() > deadline:
                raise FleetError(
                    f"{worker_id} was told to drain and is still there after {patience:g} s, with {busy:g} answers."
                )
            await registry.drain(broker, worker_id)  # again and again: it may have been away
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
        out.print(f"{escape(worker_id)} has drained; it had {busy:g} answers under way.")


def _choose(workers: list[WorkerState], part: str) -> WorkerState:
    """The worker of this id, or the only one whose id has this part.

    Raises:
        SetupError: there is none, or more than one.
    """
    found = [w for w in workers if w.worker_id == part] or [w for w in workers if part in w.worker_id]
    if len(found) == 1:
        return found[0]
    ids = ", ".join(w.worker_id for w in found or workers) or "none"
    raise SetupError(f"{part!r} is {'more than one worker' if found else 'no worker of this fleet'}: {ids}.")


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="A model of the fleet.")],
    text: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    system: Annotated[str, typer.Option(help="A system prompt.")] = "",
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.001, max=1)] = 1.0,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    data: DataOption = None,
) -> None:
    """Ask a model one question through the queue: the answer as it comes, its timings at the end."""
    said = sys.stdin.read() if text == "-" else text
    try:
        said.encode()
    except UnicodeEncodeError:
        raise BadRequest("The text is not valid UTF-8.") from None
    messages = [Message("system", system)] if system else []
    sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    request = ChatRequest(model, (*messages, Message("user", said)), sampling)
    run(_ask(find_fleet(data), request))


async def _ask(config: Config, request: ChatRequest) -> None:
    async with Broker.open(config) as broker:
        await reach(broker)
        begun, text = time.monotonic(), chat.Text()
        first: float | None = None
        async with chat.ask(broker, request) as frames:
            if frames.place:
                err.print(f"[dim]{frames.place} requests before yours …[/dim]")
            async for received in frames:
                frame = received.decode()
                text.add(frame)
                if first is None and frame.text:
                    first = time.monotonic() - begun
                print(frame.text, end="", flush=True)
                if frame.end is not None:
                    print(flush=True)
                    answer = chat.finished(frame, str(text))
                    total = time.monotonic() - begun
                    tokens = answer.usage["completion_tokens"]
                    rate = f", {tokens / total:.1f} tokens/s" if total else ""
                    err.print(
                        f"[dim]{answer.reason}: {answer.usage['prompt_tokens']} tokens in, {tokens} out; first after "
                        f"{1000 * (first or total):.0f} ms, all after {total:.2f} s{rate}[/dim]"
                    )


@app.command("chat")
def talk(
    model: Annotated[str, typer.Argument(help="A model of the fleet.", show_default="the only one, or a choice")] = "",
    system: Annotated[str, typer.Option(help="A system prompt.")] = "",
    temperature: Annotated[float | None, typer.Option(min=0, max=2, show_default="0.7")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.001, max=1, show_default="1")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, show_default="all tokens")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, show_default="what the context has room for")] = None,
    seed: Annotated[int | None, typer.Option(min=0, show_default="another one for each answer")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="The text as it comes: no colours, no Markdown.")] = False,
    multiline: Annotated[bool, typer.Option("--multiline", help="Enter begins a line, Esc Enter sends.")] = False,
    data: DataOption = None,
) -> None:
    """Chat in the terminal, through the queue like everyone. Of a pipe, what it brings is one question."""
    from broker import terminal  # its line editor takes a while to load, and no other command needs it

    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens, "seed": seed}
    settings: dict[str, int | float | None] = {name: value for name, value in given.items() if value is not None}
    look = terminal.Look(plain=plain, multiline=multiline)
    config, question = find_fleet(data), terminal.piped()  # a pipe is read before anything runs beside it

    async def work() -> None:
        async with Broker.open(config) as broker:
            await reach(broker)
            history = (data or config.data) / "chat.history"
            await terminal.run(broker, history, model, terminal.Talk(system=system, settings=settings), look, question)

    run(work())


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose it is, or what for.")],
    models: Annotated[str, typer.Option(help="Models that it may ask, with commas.", show_default="all")] = "",
    rpm: Annotated[int, typer.Option(help="Requests a minute.", min=0, show_default="no limit")] = 0,
    tpm: Annotated[int, typer.Option(help="Tokens a minute.", min=0, show_default="no limit")] = 0,
    at_once: Annotated[int, typer.Option(help="Requests waiting and running.", min=0, show_default="no limit")] = 0,
    expires: Annotated[str, typer.Option(help="When it ends: 30d, 12h, 2030-12-31 (UTC).", show_default="never")] = "",
    data: DataOption = None,
) -> None:
    """Make a key and print it, this once. With the first one, every call of the API needs a key."""
    allowed = [model.strip() for model in models.split(",") if model.strip()]
    until = _parse_time(expires) if expires else 0.0
    limits = {"models": allowed, "rpm": rpm, "tpm": tpm, "at_once": at_once, "expires": until}
    run(_create_key(find_fleet(data), name, limits))


async def _create_key(config: Config, name: str, limits: dict[str, Any]) -> None:
    async with Broker.open(config) as broker:
        await reach(broker)
        key, account = await accounts.create(broker, name, **limits)
        print(key)
        err.print(f"[dim]{account.id}: keep it, it cannot be shown again.[/dim]")


@keys_app.command("list")
def list_keys(data: DataOption = None) -> None:
    """Show all keys, their limits and when they end; never the keys themselves."""
    run(_list_keys(find_fleet(data)))


async def _list_keys(config: Config) -> None:
    async with Broker.open(config) as broker:
        await reach(broker)
        found = await accounts.listed(broker)
    table = new_table("name", "id", "models", "requests/min", "tokens/min", "at once", "created", "expires")
    for account in found:
        limits = [str(limit or "no limit") for limit in (account.rpm, account.tpm, account.at_once)]
        until = ("expired " if account.expired else "") + (_show_time(account.expires) if account.expires else "never")
        models = " ".join(account.models) or "all"
        table.add_row(escape(account.name), account.id, escape(models), *limits, _show_time(account.created), until)
    out.print(table if found else "There is no key. The API is open on loopback only.")


@keys_app.command("revoke")
def revoke_key(name: Annotated[str, typer.Argument(help="A key's name, or its id.")], data: DataOption = None) -> None:
    """Take a key away; the next call with it is refused."""
    run(_revoke_key(find_fleet(data), name))


async def _revoke_key(config: Config, name: str) -> None:
    async with Broker.open(config) as broker:
        await reach(broker)
        account = await accounts.revoke(broker, name)
        out.print(f"{escape(account.name)} ({account.id}) is revoked.")


def _parse_time(text: str) -> float:
    """Seconds since 1970 of `30d`, `12h` or a date; raises SetupError if it is none, or is over."""
    found = re.fullmatch(r"(\d{1,5})([dh])", text)
    try:
        if found:
            until = time.time() + int(found[1]) * {"d": 86_400, "h": 3600}[found[2]]
        else:
            until = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise SetupError(f"{text!r} is no time. Write 30d, 12h or 2030-12-31.") from None
    if until <= time.time():
        raise SetupError(f"{text} is over already.")
    return until


def _show_time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def _state_text(state: ModelState) -> str:
    match state.state:
        case "loading":
            return f"loading {state.card.progress} %"
        case "failed":
            return f"failed: {state.card.why}"
        case other:
            return other


def _program(name: str) -> str:
    """How to call a program of this installation: by its name where the shell finds it, else by its path."""
    here = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if found and Path(found).resolve() == here.resolve() else str(here)


def _has_display() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
