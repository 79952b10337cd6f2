from broker import keys, secret
from broker.connection import Broker


async def test_whoever_asks_first_makes_it_and_all_have_the_same(broker: Broker):
    made = await secret.load(broker)
    assert len(made) == 64
    assert made == await secret.load(broker) == await broker.redis.get(keys.SECRET)


def test_each_purpose_has_a_key_of_its_own():
    keys_of = {secret.key(b"secret", purpose) for purpose in ("voters", "pages")} | {secret.key(b"other", "voters")}
    assert len(keys_of) == 3


def test_what_is_salted_is_the_same_with_one_salt_only():
    assert secret.salted(b"salt", "anna") == secret.salted(b"salt", "anna")
    others = {secret.salted(salt, who) for salt, who in ((b"salt", "anna"), (b"salt", "bert"), (b"other", "anna"))}
    assert len(others) == 3
    assert secret.salted(b"salt", "half a pair \ud800")
