import asyncio

from broker import keys, registry
from broker.messages import ModelCard, unpack
from webapp.live import Live


class Viewer:
    """Keeps what it is told; while it is slow, it has not taken the last of it."""

    def __init__(self):
        self.told = asyncio.Queue()
        self.slow = False

    def tell(self, news, topic):
        self.told.put_nowait((topic, unpack(news)))

    def behind(self, topic):
        return self.slow and topic == "models"

    async def next(self):
        """Its type, the names of the models in it, and their order if that is told."""
        topic, news = await asyncio.wait_for(self.told.get(), 5)
        assert topic == "models"
        return news["type"], [model["name"] for model in news["models"]], news.get("order")


async def beat(broker, *models, **more):
    cards = [ModelCard(name, state="ready", **more) for name in models]
    await registry.beat(broker, "w", "ready", {"models": "a b c d", "slots": 4}, cards)


async def test_only_the_models_that_changed_are_told(broker):
    await beat(broker, "a", "b", "c")
    viewer, slow, late = Viewer(), Viewer(), Viewer()
    async with Live(broker).running() as live:
        with live.viewing(viewer), live.viewing(slow):
            assert await viewer.next() == await slow.next() == ("models", ["a", "b", "c"], None)
            slow.slow = True
            await beat(broker, "b", description="the second")
            assert await viewer.next() == ("models_changed", ["b"], None)
            assert await slow.next() == ("models", ["a", "b", "c"], None)
            slow.slow = False
            await beat(broker, "d", rank=-1)
            assert await viewer.next() == await slow.next() == ("models_changed", ["d"], ["d", "a", "b", "c"])
            with live.viewing(late):
                assert await late.next() == ("models", ["d", "a", "b", "c"], None)
            await broker.redis.hdel(keys.MODELS, "a")
            await registry.leave(broker, "other", [])  # somebody looks
            assert await viewer.next() == ("models_changed", [], ["d", "b", "c"])
        await beat(broker, "c", description="the third")
        with live.viewing(late):
            assert await late.next() == ("models", ["d", "b", "c"], None)  # nobody had looked meanwhile
        assert viewer.told.empty()
