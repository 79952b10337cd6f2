import asyncio
import time

import pytest
from redis.exceptions import ResponseError

from broker import queues
from broker.config import Config
from broker.connection import Broker, SentinelAddress, connect, redis_errors
from broker.embedded import running
from broker.errors import RedisAway, RoundOver, SetupError, StorageFull
from broker.tasks import beside
from helpers import eventually, request


def test_a_sentinel_address():
    at = SentinelAddress.parse("sentinel://anna:secret@a.example:26379,b.example:26380/fleet")
    assert at.hosts == [("a.example", 26379), ("b.example", 26380)]
    assert (at.name, at.username, at.password) == ("fleet", "anna", "secret")
    assert connect("sentinel://a:1,b:2/fleet").connection_pool.service_name == "fleet"


@pytest.mark.parametrize("url", ["http://x", "nonsense", "redis://host:port", "sentinel://nohost/x"])
def test_what_is_no_address_is_a_sentence(url):
    with pytest.raises(SetupError, match="REDIS_URL"):
        connect(url)


async def test_redis_errors_become_ours():
    with pytest.raises(RedisAway):
        async with redis_errors():
            raise OSError
    with pytest.raises(StorageFull):
        async with redis_errors():
            raise ResponseError("MISCONF Errors writing to the AOF file: No space left on device")


async def test_a_full_server_refuses_with_storage(broker, card):
    await broker.redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(StorageFull):
            await queues.enqueue(broker, request("x" * 100_000))
    finally:
        await broker.redis.config_set("maxmemory", "0")


async def test_opening_and_closing_at_any_moment_ends(config):
    """redis-py can swallow a cancellation while it connects."""
    for pause in [0, 0, 0.001, 0.002, 0.003, 0.005] * 3:
        async with asyncio.timeout(3):
            async with Broker.open(config):
                await asyncio.sleep(pause)


async def test_a_task_that_fails_ends_the_block_that_it_runs_beside():
    async def fails() -> None:
        await asyncio.sleep(0)
        raise SetupError("broken")

    with pytest.raises(SetupError, match="broken"):
        async with beside(fails()):
            await asyncio.sleep(5)


async def test_work_for_later_is_done_before_it_closes(config):
    done = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.append(True)

    async with Broker.open(config) as broker:
        broker.later(work())
    assert done


async def test_what_fails_later_is_logged_unless_it_is_a_refusal(config, caplog):
    async def fails(error: Exception) -> None:
        raise error

    async with Broker.open(config) as broker:
        with pytest.raises(RoundOver):
            await broker.later(fails(RoundOver()))
        assert not caplog.messages
        with pytest.raises(RedisAway):
            await broker.later(fails(RedisAway()))
        assert "RedisAway" in caplog.text


@pytest.mark.timeout(40)
async def test_a_restarted_server_is_found_again(tmp_path):
    from broker import embedded

    port = embedded.free_port()
    config = Config.from_env({"REDIS_URL": f"redis://127.0.0.1:{port}/0"})
    async with Broker.open(config) as broker:  # before the server is there
        with running(tmp_path, port) as (_, first):
            async with broker.listener.subscribe("channel") as mailbox:
                await broker.redis.publish("channel", "a")
                assert (await mailbox.take(5)) == ([b"a"], False)
                first.terminate()
                first.wait()
                begun = time.monotonic()
                with running(tmp_path, port) as (_, second):
                    assert second.pid != first.pid
                    _, gap = await mailbox.take(10)
                    assert gap, "whoever listened is told that something may be missing"
                    assert time.monotonic() - begun < 5
                    await eventually(lambda: broker.redis.publish("channel", "b"))
                    assert (await mailbox.take(5))[0] == [b"b"]
