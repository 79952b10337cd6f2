"""`fleetchat chat` as a person uses it: the real command in a real terminal, whose screen is read."""

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from broker import chat, keys, registry
from broker.messages import ModelCard
from broker.tasks import beside
from fleet_process import environment, worker
from helpers import eventually, request
from screen import console

CHAT = [str(Path(sys.executable).with_name("fleetchat")), "chat"]
ENTER, ESCAPE, UP, CTRL_C, CTRL_D = "\r", "\x1b", "\x1b[A", "\x03", "\x04"

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def chatting(broker, valkey, worker_in, tmp_path):
    """`async with chatting("--seed", "1") as terminal`: a chat in a terminal, at its first prompt."""

    @asynccontextmanager
    async def start(*options, see="shows the commands", columns=160, lines=24, **settings):
        async with AsyncExitStack() as stack:
            if settings.get("model") != "":
                await stack.enter_async_context(worker_in(**settings))
            env = environment(valkey, data=tmp_path)
            terminal = stack.enter_context(console([*CHAT, *options], env, columns=columns, lines=lines))
            await terminal.see(see, seconds=30)
            yield terminal

    return start


def pasted(text: str) -> str:
    """As terminals send what is pasted."""
    return f"{ESCAPE}[200~{text}{ESCAPE}[201~"


async def running(broker) -> int:
    """Answers that are being written."""
    return int(await broker.redis.zcard(keys.running("echo")))


@pytest.mark.parametrize("columns", [80, 30])
async def test_an_answer_is_markdown_and_the_quiet_line_says_what_it_took(chatting, columns):
    async with chatting(columns=columns, see="\n>") as terminal:
        terminal.type(pasted("# Title\n\nhello **bold** you\n\n- 一二三四五六七八九十一二三四五六七八九十\n- two"))
        terminal.type(ENTER)
        shown = await terminal.see("first")
        answer = shown.rpartition("- two")[2]
        assert "\nTitle\n" in answer
        assert "\nhello bold you\n" in answer
        folded = (
            " • 一二三四五六七八九十一二三四五六七八九十"
            if columns == 80
            else " • 一二三四五六七八九十一二三\n   四五六七八九十"
        )
        assert f"\n{folded}\n • two\n" in answer
        assert re.search(r"9 tokens, [\d.]+\s+tokens/s,\s+first\s+after", answer), answer
        terminal.send("!!exit")
        assert await terminal.ended() == 0


@pytest.mark.parametrize("columns", [80, 33])
async def test_a_long_answer_is_whole_in_what_has_scrolled_away(chatting, columns):
    async with chatting(columns=columns, lines=10, see="\n>") as terminal:
        terminal.send("/echo 900 2ms")
        shown = await terminal.see("tokens/s", seconds=30)
        assert [int(n) for n in shown.partition("2ms\n")[2].split() if n.isdecimal()][:900] == list(range(1, 901))
        assert b"\x1b[?1049h" not in terminal.bytes  # no other screen, which would be gone afterwards


async def test_ctrl_c_stops_an_answer_frees_its_slot_and_keeps_the_chat(broker, chatting):
    async with chatting() as terminal:
        terminal.send("/echo 5000 10ms")
        await terminal.see("1 2 3")
        assert await running(broker) == 1
        terminal.type(CTRL_C)
        await terminal.see("stopped, ")
        await eventually(lambda: _idle(broker))
        terminal.send("still here?")
        await terminal.see("still here?", times=2)
        terminal.type(CTRL_C)
        await terminal.see("Ctrl-C again leaves")
        terminal.send("so I stay")
        await terminal.see("so I stay", times=2)
        terminal.type(CTRL_C)
        await terminal.see("Ctrl-C again leaves", times=2)
        terminal.type(CTRL_C)
        assert await terminal.ended() == 0


async def test_what_is_typed_while_an_answer_comes_is_the_next_message(chatting):
    async with chatting() as terminal:
        terminal.send("/echo 50 20ms")
        await terminal.see("1 2 3")
        terminal.send("typed ahead")
        shown = await terminal.see("2 tokens, ")
        assert "49 50\n" in shown
        assert "> typed ahead\ntyped ahead\n" in shown
        assert shown.count("typed ahead") == 2


async def _idle(broker) -> bool:
    return await running(broker) == 0


async def test_a_window_that_is_closed_frees_its_slot_at_once(broker, chatting):
    async with chatting() as terminal:
        terminal.send("/echo 5000 10ms")
        await terminal.see("1 2 3")
        terminal.process.send_signal(signal.SIGHUP)
        await eventually(lambda: _idle(broker), 5)
        assert await terminal.ended() == 130
        assert "Traceback" not in terminal.text


async def test_the_chat_is_sent_with_its_history_and_commands_change_it(broker, chatting, tmp_path):
    async with chatting("--system", "Be brief.") as terminal:
        file = tmp_path / "chat.json"

        async def saved():
            """What the model would see."""
            file.unlink(missing_ok=True)
            terminal.send(f"!!save {file.with_suffix('')}")
            raw = await eventually(lambda: file.exists() and json.loads(file.read_text()))
            assert raw["model"] == "echo"
            return [m["content"] for m in raw["messages"]]

        terminal.send("one")
        await terminal.see("first after")
        terminal.send("two three")
        await terminal.see("first after", times=2)
        assert await saved() == ["Be brief.", "one", "one", "two three", "two three"]
        terminal.send("!!regen")
        await terminal.see("first after", times=3)
        assert await saved() == ["Be brief.", "one", "one", "two three", "two three"]
        terminal.send("!!remove")
        await terminal.see("are gone")
        assert await saved() == ["Be brief.", "one", "one"]
        terminal.send("!!system Be long.")
        await terminal.see("is set")
        terminal.send("!!reset")
        await terminal.see("begins again")
        assert await saved() == ["Be long."]
        terminal.send("!!remove")
        await terminal.see("nothing to take back")
        terminal.send("!!regen")
        await terminal.see("no question")
        terminal.send("!!nonsense")
        await terminal.see("There is no command !!nonsense")
        terminal.send("!!set max_tokens 2")
        await terminal.see("max_tokens 2")
        terminal.send("one two three")
        await terminal.see("cut off at the limit of tokens, 2 tokens")
        terminal.send("!!set temperature 1000")
        await terminal.see("temperature is 1000.0, but must be")
        terminal.send("!!set wings 2")
        await terminal.see("There is no setting wings")
        terminal.send("!!set max_tokens")
        await terminal.see("as it was")
        terminal.send("!!help")
        for command in ("!!exit", "!!save FILE", "!!set NAME VALUE"):
            await terminal.see(f"  {command}")
        terminal.send("!!model nobody")
        await terminal.see("No worker has ever offered a model called 'nobody'")
        terminal.type(CTRL_D)
        assert await terminal.ended() == 0


async def test_files_are_loaded_and_never_written_over_without_a_word(chatting, tmp_path):
    fastchat = {
        "template_name": "vicuna_v1.1",
        "system_message": "A chat.",
        "roles": ["USER", "ASSISTANT"],
        "messages": [["USER", "Hi"], ["ASSISTANT", "I am **Vicuna**"], ["USER", ["See", []]], ["ASSISTANT", None]],
        "offset": 0,
    }
    (tmp_path / "old.json").write_text(json.dumps(fastchat))
    (tmp_path / "bad.json").write_text('{"messages": 5}')
    async with chatting() as terminal:
        terminal.send(f"!!load {tmp_path}/old")
        shown = await terminal.see("has 3 messages")
        assert "> Hi" in shown
        assert "\nI am Vicuna\n" in shown
        terminal.send("!!regen")
        await terminal.see("first after")
        terminal.send(f"!!load {tmp_path}/bad.json")
        await terminal.see("is no chat")
        terminal.send(f"!!load {tmp_path}/none")
        await terminal.see("cannot be read: No such file")
        terminal.send(f"!!save {tmp_path}/old")
        await terminal.see("[y/N]")
        terminal.send("")
        await terminal.see("Nothing was saved")
        assert json.loads((tmp_path / "old.json").read_text()) == fastchat
        terminal.send(f"!!save {tmp_path}/old")
        await terminal.see("[y/N]", times=2)
        terminal.send("y")
        await terminal.see("Saved as")
        assert json.loads((tmp_path / "old.json").read_text())["messages"] == [
            {"role": "system", "content": "A chat."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "I am **Vicuna**"},
            {"role": "user", "content": "See"},
            {"role": "assistant", "content": "See"},
        ]
        terminal.send(f"!!save {tmp_path}/no/folder.json")
        await terminal.see("cannot be written: No such file")


async def test_several_lines_are_one_message_and_the_history_is_the_owners(chatting, tmp_path):
    async with chatting() as terminal:
        terminal.type(f"first{ESCAPE}{ENTER}second{ENTER}")
        await terminal.see("· second\nfirst\nsecond\n2 tokens")
        terminal.type(pasted("third\nfourth"))
        await terminal.see("· fourth")
        terminal.type(ENTER)
        await terminal.see("· fourth\nthird\nfourth\n2 tokens")
        terminal.type(CTRL_D)
        await terminal.ended()
    history = tmp_path / "chat.history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    async with chatting("--multiline") as terminal:
        terminal.type(UP)
        await terminal.see("> third\n· fourth")
        terminal.type(f"{ENTER}fifth{ENTER}{CTRL_D}")
        await terminal.see("third\nfourth\nfifth\n3 tokens")
        terminal.type(f"sixth{ESCAPE}{ENTER}")
        await terminal.see("> sixth\nsixth\n1 token,")
        terminal.send("!!exit")
        assert await terminal.ended() == 0


async def test_a_history_that_has_grown_large_loses_its_oldest_entries(chatting, tmp_path):
    history = tmp_path / "chat.history"
    history.write_text("".join(f"\n# 2026-01-01\n+question {i} {'x' * 1000}\n" for i in range(1100)))
    async with chatting() as terminal:
        terminal.type(UP)
        await terminal.see("> question 1099 ")
    assert 400_000 < history.stat().st_size <= 500_000
    assert history.read_text().startswith("\n# 2026-01-01\n+question ")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


async def test_a_model_is_picked_where_there_are_several_and_changed(chatting):
    async with chatting(model="one=echo,two=echo", see="number or name") as terminal:
        terminal.send("5")
        await terminal.see("number or name", times=2)
        terminal.send("2")
        await terminal.see("two: ")
        terminal.send("hello")
        await terminal.see("first after")
        terminal.send("!!model one")
        await terminal.see("one answers from now on")
        terminal.send("!!model")
        await terminal.see("1  one (this one)")


async def test_the_place_in_line_is_shown_while_one_waits(broker, chatting):
    async with chatting(slots=1) as terminal:
        async with chat.ask(broker, request("/echo 5000 10ms", model="echo", keep=False)) as first:
            await first.take()
            async with chat.ask(broker, request("hi", model="echo", keep=False)):
                terminal.send("me, too")
                await terminal.see("waiting, 1 before you")
            await terminal.see("waiting …")
        await terminal.see("me, too", times=2)
        shown = await terminal.see("first after")
        assert "waiting" not in shown


async def test_plain_is_the_text_as_it_comes(chatting):
    async with chatting("--plain") as terminal:
        begun = len(terminal.bytes)
        terminal.type(pasted(f"**not** {ESCAPE}[31mred"))
        terminal.type(ENTER)
        await terminal.see("first after")
        assert "\n**not** [31mred\n" in terminal.text
        assert not re.search(rb"\x1b\[[\d;]*[1-9][\d;]*m", terminal.bytes[begun:])


async def test_an_error_is_a_sentence_and_the_chat_goes_on(broker, chatting):
    async with chatting() as terminal:
        await broker.redis.hdel(keys.MODELS, "echo")
        terminal.send("hello")
        await terminal.see("No worker has ever offered a model called 'echo'")
        await eventually(lambda: broker.redis.hexists(keys.MODELS, "echo"))
        terminal.send("!!regen")
        await terminal.see("hello\n1 token,")


async def test_an_answer_goes_on_when_its_worker_is_killed(broker, valkey, chatting, tmp_path):
    with worker(valkey, tmp_path, lease_seconds=2) as first, worker(valkey, tmp_path, lease_seconds=2) as second:
        await eventually(lambda: _workers(broker, 2), 60)
        async with chatting(model="") as terminal:
            terminal.send("/echo 150 20ms")
            await terminal.see("1 2 3 4")
            busy = [w for w in await registry.workers(broker) if w.number("busy")] or await _busy(broker)
            killed = next(p for p in (first, second) if str(p.pid) == busy[0].fields["pid"])
            os.kill(killed.pid, signal.SIGKILL)
            shown = await terminal.see("tokens/s", seconds=30)
            assert [int(n) for n in shown.rpartition("20ms\n")[2].split()[:150]] == list(range(1, 151))


async def _workers(broker, count: int) -> bool:
    return len(await registry.workers(broker)) == count


async def _busy(broker):
    async def look():
        return [w for w in await registry.workers(broker) if w.number("busy")]

    return await eventually(look)


def piped(valkey: str, data: Path, *arguments: str, said: bytes = b"hi") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CHAT, *arguments], env=environment(valkey, data=data), input=said, capture_output=True)


async def test_a_pipe_is_one_question_and_its_answer_nothing_else(broker, valkey, worker_in, tmp_path):
    async with worker_in():
        done = await asyncio.to_thread(piped, valkey, tmp_path, said="**two**\nlines 二\n".encode())
        assert (done.returncode, done.stdout, done.stderr) == (0, "**two**\nlines 二\n".encode(), b"")
        done = await asyncio.to_thread(piped, valkey, tmp_path, "--max-tokens", "1", said=b"!!exit is no command")
        assert (done.returncode, done.stdout) == (0, b"!!exit \n")
        for said, sentence in ((b"", "The message is empty"), (b"\xff", "not valid UTF-8")):
            done = await asyncio.to_thread(piped, valkey, tmp_path, said=said)
            assert (done.returncode, done.stdout) == (1, b"")
            assert sentence in done.stderr.decode()
    assert not (tmp_path / "chat.history").exists()


async def test_what_cannot_be_asked_is_one_sentence(broker, valkey, tmp_path):
    done = await asyncio.to_thread(piped, valkey, tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"No model is ready.")
    cards = [ModelCard(n, state="ready", kind=k) for n, k in (("a", "chat"), ("b", "chat"), ("v", "embedding"))]

    async def beat() -> None:
        while True:
            await registry.beat(broker, "w", "ready", {"models": "a b v", "slots": 4}, cards)
            await asyncio.sleep(0.5)

    async with beside(beat()):
        await eventually(lambda: registry.workers(broker))
        for arguments, code, sentence in (
            ((), 2, b"Say which model: a, b."),
            (("nope",), 1, b"No worker has ever offered a model called 'nope'"),
            (("v",), 1, b"v gives embeddings and cannot answer"),
        ):
            done = await asyncio.to_thread(piped, valkey, tmp_path, *arguments)
            assert (done.returncode, done.stdout) == (code, b""), done
            assert done.stderr.startswith(sentence), done
    done = await asyncio.to_thread(piped, "redis://127.0.0.1:1/0", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(b"There is no fleet at")
