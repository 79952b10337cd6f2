import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from broker import chat, keys, queues, registry
from broker.errors import NoSuchModel, NoWorker, PromptEmpty, PromptTooLarge
from broker.messages import ChatRequest, Frame, Message, ModelCard
from broker.tasks import stop
from fleet_process import environment
from helpers import claim, eventually, request


async def test_an_unknown_model_and_one_without_worker_are_told_apart(broker, card):
    with pytest.raises(NoSuchModel):
        await chat.answer(broker, request(model="nope"))
    await registry.leave(broker, "w", ["m"])
    with pytest.raises(NoWorker):
        await chat.answer(broker, request())


async def test_a_failed_model_says_why(broker):
    await registry.beat(broker, "w", "failed", {"models": "m"}, [ModelCard("m", state="failed", why="no template")])
    with pytest.raises(NoWorker, match="no template"):
        await chat.answer(broker, request())


async def test_a_loading_model_accepts_and_waits(broker):
    await registry.beat(broker, "w", "loading", {"models": "m"}, [ModelCard("m", progress=40)])
    async with chat.ask(broker, request()) as reader:
        assert reader.place == 0


@pytest.mark.parametrize(
    ("text", "error"),
    [("", PromptEmpty), (" \n", PromptEmpty), ("x" * 262_145, PromptTooLarge), ("語" * 90_000, PromptTooLarge)],
)
async def test_what_needs_no_tokenizer_is_refused_before_the_queue(broker, card, text, error):
    with pytest.raises(error) as refused:
        await chat.answer(broker, request(text))
    if error is PromptTooLarge:
        assert "262144" in str(refused.value)
    assert await broker.redis.zcard(keys.queue("m")) == 0


async def test_an_empty_prompt_and_one_that_is_too_large_are_refused_before_the_queue(broker, card):
    for prompt, error in (("", PromptEmpty), ((), PromptEmpty), ((1,) * 65_537, PromptTooLarge)):
        with pytest.raises(error):
            await chat.answer(broker, ChatRequest("m", (), prompt=prompt))
    for fine in (ChatRequest("m", (), prompt=" "), ChatRequest("m", (Message("user", "a"), Message("tool", "")))):
        chat.check_size(broker, fine)


async def test_a_new_answer_comes_without_a_look_at_its_list(broker, worker_in):
    async with worker_in():
        await broker.redis.config_resetstat()
        assert (await chat.answer(broker, request("one two", model="echo"))).text == "one two"
        assert "cmdstat_lrange" not in await broker.redis.info("commandstats")


async def test_wherever_it_is_cut_off_nothing_stays_in_the_queue(broker, card):
    async def ask() -> None:
        async with chat.ask(broker, request(keep=False)):
            await asyncio.Event().wait()

    for steps in range(1, 150):  # of the event loop, within which it is accepted
        asking = asyncio.create_task(ask())
        for _ in range(steps):
            await asyncio.sleep(0)
        await stop(asking)
        await eventually(lambda: not broker._background)
        assert not await broker.redis.zcard(keys.queue("m")), steps
    assert await broker.redis.hget(keys.counts("m"), "accepted"), "some had been"


async def test_leaving_early_ends_what_nobody_keeps(broker, card):
    async with chat.ask(broker, request(keep=False)) as reader:
        pass
    await eventually(lambda: _ended(broker, reader.request_id))


async def test_leaving_early_leaves_a_kept_answer_alone(broker, card):
    async with chat.ask(broker, request(keep=True)) as reader:
        pass
    await asyncio.sleep(0.05)
    assert not await _ended(broker, reader.request_id)


async def test_a_cancelled_caller_still_cancels(broker, card):
    entered = asyncio.Event()

    async def caller() -> None:
        async with chat.ask(broker, request(keep=False)) as reader:
            ids.append(reader.request_id)
            entered.set()
            await reader.take()

    ids: list[str] = []
    task = asyncio.create_task(caller())
    await entered.wait()
    await claim(broker)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: _ended(broker, ids[0]))


async def _ended(broker, request_id) -> bool:
    return await broker.redis.hget(keys.request(request_id), "state") == b"ended"


def test_text_follows_replaced_frames():
    text = chat.Text()
    for seq, epoch, said in [(0, 1, "a"), (1, 1, "b"), (2, 1, "c"), (1, 2, "B")]:
        text.add(Frame("r", seq, epoch, said))
    assert str(text) == "aB"


async def test_the_queue_full_error_reaches_the_caller_and_unsubscribes(broker, card):
    broker.config = replace(broker.config, queue_limit=1)
    await queues.enqueue(broker, request())
    asked = request()
    with pytest.raises(Exception, match="wait for this model"):
        await chat.answer(broker, asked)
    await eventually(lambda: _unheard(broker, asked.request_id))


async def _unheard(broker, request_id) -> bool:
    return (await broker.redis.pubsub_numsub(keys.stream(request_id)))[0][1] == 0


async def test_ctrl_c_in_the_command_line_ends_its_answer(broker, worker_in, valkey):
    async with worker_in() as worker:
        command = Path(sys.executable).with_name("fleetchat")
        env = environment(valkey)
        process = await asyncio.create_subprocess_exec(
            command, "ask", "echo", "/echo 1000 20ms", env=env, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout
        assert await process.stdout.readexactly(2) == b"1 "
        assert worker.claims
        process.send_signal(signal.SIGINT)
        await eventually(lambda: not worker.claims, 2)
        assert await process.wait() == 130
