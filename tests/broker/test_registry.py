from broker import keys, registry


async def shown(broker):
    (model,) = await registry.models(broker)
    return {name: model.to_map()[name] for name in ("waiting", "running", "slots", "first_s", "wait_s")}


async def test_a_model_says_how_long_one_would_wait(broker, card):
    assert await shown(broker) == {"waiting": 0, "running": 0, "slots": 4, "first_s": 0, "wait_s": 0}
    await broker.redis.hset(keys.pace("m"), mapping={"seconds": "8", "first": "0.25"})
    await broker.redis.zadd(keys.running("m"), dict.fromkeys("abc", 1))
    assert (await shown(broker))["wait_s"] == 0, "a slot is free"
    await broker.redis.zadd(keys.running("m"), {"d": 1})
    assert await shown(broker) == {"waiting": 0, "running": 4, "slots": 4, "first_s": 0.2, "wait_s": 2}
    await broker.redis.zadd(keys.queue("m"), dict.fromkeys("ef", 1))
    assert (await shown(broker))["wait_s"] == 6
