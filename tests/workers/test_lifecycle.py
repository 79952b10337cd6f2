"""A worker from start to end, with real models and real processes: what it says in its log, its card and its exit code."""

import asyncio
import gc
import os
import re
import shutil
import signal
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from broker import chat, embedded, keys, registry
from broker.config import Config
from broker.connection import Broker
from broker.errors import NoWorker, PromptTooLong
from broker.messages import Sampling
from fleet_process import worker as worker_process
from helpers import eventually, request
from tiny_model import build
from workers.engine.echo_engine import CONTEXT, EchoEngine
from workers.lifecycle import EngineStopped

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("models") / "tiny")


async def state(broker: Broker) -> registry.ModelState | None:
    return next(iter(await registry.models(broker)), None)


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = folder / "tokenizer_config.json"
    config.write_text(re.sub(r'"chat_template": .*?,\n', "", config.read_text()))


def pickle_only(folder: Path) -> None:
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04\x95")


def cut_weights(folder: Path) -> None:
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])


def bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (no_template, "chat template"),
    (pickle_only, "safetensors"),
    (cut_weights, "weights|safetensors"),
    (bad_config, r"config\.json"),
]


@pytest.mark.parametrize(("breaking", "sentence"), BROKEN, ids=[b.__name__ for b, _ in BROKEN])
async def test_a_model_that_cannot_be_served_is_one_sentence_everywhere(
    broker, valkey, tiny, tmp_path, breaking, sentence
):
    folder = shutil.copytree(tiny, tmp_path / "broken")
    breaking(folder)
    with worker_process(valkey, tmp_path, str(folder)) as process:
        assert await asyncio.to_thread(process.wait, 40) == 2
    log = (tmp_path / "worker.log").read_text()
    assert "Traceback" not in log
    assert re.search(sentence, log.splitlines()[-1])
    gone = await state(broker)
    assert gone is not None
    assert (gone.state, gone.workers) == ("failed", ())
    assert re.search(sentence, gone.card.why)
    assert "\n" not in gone.card.why
    with pytest.raises(NoWorker, match=sentence):
        await chat.answer(broker, request(model="broken"))


async def test_a_failing_worker_does_not_hide_that_another_is_ready(broker, worker_in, valkey, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "m")
    no_template(folder)
    async with worker_in(model="m=echo"):
        with worker_process(valkey, tmp_path, str(folder)) as process:
            assert await asyncio.to_thread(process.wait, 40) == 2
        assert (await state(broker)).state == "ready"  # type: ignore[union-attr]
        assert (await chat.answer(broker, request("hi"))).text == "hi"


async def test_one_worker_advertises_all_its_models(broker, worker_in, tmp_path):
    listed = tmp_path / "models.toml"
    listed.write_text(
        '[models.b]\nsource = "echo"\ndescription = "The second"\nlicence = "MIT"\n'
        'organisation = "Us"\nlink = "https://example.org"\ndefaults = { top_k = 5, stop = ["x"] }\n'
    )
    async with worker_in(model="a=echo,b", models_file=listed):
        shown = await registry.models(broker)
        assert [(m.card.name, m.state, m.card.context) for m in shown] == [
            ("a", "ready", CONTEXT),
            ("b", "ready", CONTEXT),
        ]
        card = shown[1].card
        assert (card.description, card.licence, card.organisation) == ("The second", "MIT", "Us")
        assert (card.link, card.defaults) == ("https://example.org", {"top_k": 5, "stop": ["x"]})
        (worker,) = await registry.workers(broker)
        assert worker.models == ["a", "b"]
        assert [m.to_map()["workers"] for m in shown] == [1, 1]
    assert [m.state for m in await registry.models(broker)] == ["gone", "gone"]


async def test_what_loading_left_is_collected_and_what_it_brought_is_not_looked_through_again(worker_in):
    class Circle:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        left, frozen = weakref.ref(Circle()), gc.get_freeze_count()
        async with worker_in():
            assert gc.get_freeze_count() > frozen
            assert left() is None
    finally:
        gc.enable()


async def test_a_model_that_cannot_be_loaded_fails_those_that_share_its_worker(broker, valkey, tiny, tmp_path):
    adapter = tmp_path / "law"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    base = shutil.copytree(tiny, tmp_path / "base")
    pickle_only(base)
    with worker_process(valkey, tmp_path, f"{base},{adapter}") as process:
        assert await asyncio.to_thread(process.wait, 40) == 2
    shown = await registry.models(broker)
    assert [(m.card.name, m.state) for m in shown] == [("base", "failed"), ("law", "failed")]
    assert shown[0].card.why == shown[1].card.why
    assert "Traceback" not in (tmp_path / "worker.log").read_text()


async def test_a_real_model_through_the_queue(broker, worker_in, tiny):
    async with worker_in(model=f"tiny={tiny}"):
        shown = (await state(broker)).to_map()  # type: ignore[union-attr]
        assert (shown["state"], shown["progress"], shown["context"]) == ("ready", 100, 512)
        asked = [request(f"hello {i}", model="tiny", sampling=Sampling(1.0, max_tokens=30, seed=i)) for i in range(8)]
        answers = await asyncio.gather(*(chat.answer(broker, a) for a in asked))
        again = [
            await chat.answer(
                broker, request(f"hello {i}", model="tiny", sampling=Sampling(1.0, max_tokens=30, seed=i))
            )
            for i in range(3)
        ]
        assert [a.text for a in answers[:3]] == [a.text for a in again], "the same whatever else runs"
        assert len({a.text for a in answers}) == 8
        scored = Sampling(0.0, max_tokens=5, ignore_eos=True, logprobs=1, prompt_logprobs=0)
        async with chat.ask(broker, request("hello", model="tiny", sampling=scored)) as reader:
            frames = [received.decode() async for received in reader]
        found = [one for frame in frames for one in frame.logprobs or ()]
        assert len(found) == 5
        assert all(one["logprob"] == one["top"][0]["logprob"] < 0 for one in found)
        first, *others = [one for frame in frames if frame.data for one in frame.data["prompt_logprobs"]]
        assert first is None
        assert frames[-1].end["usage"]["prompt_tokens"] == 1 + len(others)
        assert bytes(others[-1]["token"])
        assert all(a.usage["completion_tokens"] <= 30 and a.usage["prompt_tokens"] > 3 for a in answers)


async def test_more_tokens_than_the_model_takes_are_refused_with_both_counts(broker, worker_in, tiny):
    async with worker_in(model=f"tiny={tiny}") as worker:
        with pytest.raises(PromptTooLong) as refused:
            await chat.answer(broker, request("a b c d " * 400, model="tiny"))
        counts = [int(n.replace(",", "").replace(" ", "")) for n in re.findall(r"\d[\d ,]*\d", str(refused.value))]
        assert 512 in counts
        assert max(counts) > 512
        await eventually(lambda: not worker.claims)


async def test_what_is_loading_says_how_far_and_ctrl_c_ends_it(broker, valkey, tiny, tmp_path):
    with worker_process(valkey, tmp_path, f"tiny={tiny}") as process:
        loading = await eventually(lambda: state(broker), 20)
        assert loading.state in ("loading", "ready")
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 10) == 0
    assert "Traceback" not in (tmp_path / "worker.log").read_text()


async def test_a_killed_workers_sampled_answer_goes_on_byte_for_byte(broker, valkey, tiny, tmp_path, worker_in):
    model = f"tiny={tiny}"
    async with worker_in(model=model):
        for seed in range(60):  # until a long one: most end early
            sampling = Sampling(1.0, 0.95, max_tokens=400, seed=seed)
            undisturbed = await chat.answer(broker, request("tell me", model="tiny", sampling=sampling))
            if undisturbed.usage["completion_tokens"] > 150:
                break
    assert undisturbed.usage["completion_tokens"] > 150
    asked = request("tell me", model="tiny", sampling=sampling)
    with worker_process(valkey, tmp_path, model, coalesce_ms=0) as first:
        await eventually(lambda: _ready(broker), 30)
        async with chat.ask(broker, asked) as frames:
            text = chat.Text()
            while len(str(text)) < 60:
                for received in await frames.take():
                    text.add(received.decode())
            os.kill(first.pid, signal.SIGKILL)
            async with worker_in(model=model):
                async for received in frames:
                    text.add(received.decode())
                    last = received.decode()
    assert int(await broker.redis.hget(keys.request(asked.request_id), "epoch")) == 2
    assert str(text) == undisturbed.text
    assert last.end["usage"] == undisturbed.usage


async def _ready(broker: Broker) -> bool:
    now = await state(broker)
    return now is not None and now.state == "ready" and bool(now.workers)


async def test_a_worker_started_before_redis_waits_for_it(tmp_path):
    port = embedded.free_port()
    url = f"redis://127.0.0.1:{port}/0"
    with worker_process(url, tmp_path) as process:
        await eventually(lambda: "trying again" in (tmp_path / "worker.log").read_text(), 20)
        with embedded.running(tmp_path, port):
            async with Broker.open(Config.from_env({"REDIS_URL": url})) as broker:
                await eventually(lambda: _ready(broker), 10)
                assert (await chat.answer(broker, request("hello", model="echo"))).text == "hello"
        assert process.poll() is None


async def test_a_dead_engine_ends_the_worker_and_leaves_the_registry(broker, worker_in, monkeypatch):
    async with worker_in() as worker:
        monkeypatch.setattr(EchoEngine, "alive", False)
        await eventually(lambda: worker.serving_ended)
        assert isinstance(worker.serving_ended, EngineStopped)
        assert await registry.workers(broker) == []


async def test_a_hung_engine_ends_the_worker_and_its_answer_goes_on_elsewhere(broker, worker_in, monkeypatch):
    asked = request("/echo 4 2s", model="echo")
    monkeypatch.setattr(EchoEngine, "busy", True)
    async with worker_in(stall_seconds=1, lease_seconds=2) as hung:
        task = asyncio.create_task(chat.answer(broker, asked))
        await eventually(lambda: hung.serving_ended)
        assert isinstance(hung.serving_ended, EngineStopped)
        monkeypatch.setattr(EchoEngine, "busy", False)
        async with worker_in():
            answer = await task
    assert answer.text == "1 2 3 4 "
    assert int(await broker.redis.hget(keys.request(asked.request_id), "epoch")) > 1
