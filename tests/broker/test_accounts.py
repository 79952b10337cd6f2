"""API keys: made once, found by their hash, limited by the minute over all web processes."""

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker import accounts, keys
from broker.accounts import Account
from broker.errors import SetupError
from fleet_process import environment

COMMAND = str(Path(sys.executable).with_name("fleetchat"))


async def test_a_key_is_found_until_it_is_revoked_and_is_nowhere_in_redis(broker):
    assert await accounts.find(broker, "fc-x") == (None, False)
    key, account = await accounts.create(broker, "me", models=("a", "b"), rpm=5, tpm=6)
    assert re.fullmatch("fc-[0-9a-f]{64}", key)
    assert await accounts.find(broker, key) == (account, True)
    for other in ("", key[:-1], key.upper(), "x" * 1000, "ü", "\udcff"):
        assert await accounts.find(broker, other) == (None, True)
    assert account.allows("a")
    assert not account.allows("c")
    stored = repr(await broker.redis.hgetall(keys.ACCOUNTS))
    assert key not in stored
    assert key[3:] not in stored
    assert await accounts.listed(broker) == [account]
    assert await accounts.revoke(broker, account.id) == account
    assert await accounts.find(broker, key) == (None, False)


async def test_a_name_is_taken_once_and_has_to_be_one(broker):
    await accounts.create(broker, "me")
    for name in ("me", "", " ", "x" * 65, "a\nb"):
        with pytest.raises(SetupError):
            await accounts.create(broker, name)
    with pytest.raises(SetupError, match="nobody"):
        await accounts.revoke(broker, "nobody")


async def test_a_key_ends_at_its_time(broker):
    key, _ = await accounts.create(broker, "me", expires=time.time() + 0.2)
    assert (await accounts.find(broker, key))[0]
    await asyncio.sleep(0.25)
    assert await accounts.find(broker, key) == (None, True), "the fleet still has keys, so it does not become open"


async def test_requests_a_minute_hold_for_all_at_once_and_fill_up_again(broker):
    account = Account("key-1", "me", rpm=600)  # one every 100 ms
    allowed = await asyncio.gather(*(accounts.spend(broker, account, requests=1) for _ in range(620)))
    refused = [allowance for allowance in allowed if allowance.wait]
    assert 5 <= len(refused) <= 20
    assert all(0 < allowance.wait <= 0.1 for allowance in refused)
    await asyncio.sleep(refused[-1].wait + 0.02)
    assert not (await accounts.spend(broker, account, requests=1)).wait
    limit, left, full = (await accounts.spend(broker, account)).kinds["requests"]
    assert (limit, left) == (600, 0)
    assert 55 < full <= 60
    assert 50 < await broker.redis.pttl("rate:key-1") / 1000 <= 61


async def test_tokens_may_be_overdrawn_by_what_was_under_way_and_are_paid_back(broker):
    account = Account("key-1", "me", tpm=600)  # one every 100 ms
    assert not (await accounts.spend(broker, account, requests=1)).wait
    spent = await accounts.spend(broker, account, tokens=900, force=True)
    assert spent.kinds["tokens"][1] == 0
    assert 29 < (await accounts.spend(broker, account, requests=1)).wait <= 30.2
    assert "requests" not in spent.kinds
    assert not (await accounts.spend(broker, Account("key-2", "you", tpm=600), requests=1)).wait


def run(valkey: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = environment(valkey) | {"COLUMNS": "200"}
    return subprocess.run([COMMAND, *arguments], env=env, capture_output=True, text=True)


async def test_the_command_makes_lists_and_revokes(broker, valkey):
    made = await asyncio.to_thread(
        run, valkey, "keys", "create", "al ice", "--models", "a, b", "--rpm", "5", "--at-once", "7", "--expires", "30d"
    )
    assert re.fullmatch("fc-[0-9a-f]{64}\n", made.stdout), made
    account, _ = await accounts.find(broker, made.stdout.strip())
    assert account
    limits = (account.rpm, account.tpm, account.at_once)
    assert (account.name, account.models, limits) == ("al ice", ("a", "b"), (5, 0, 7))
    assert abs(account.expires - time.time() - 30 * 86_400) < 60
    shown = await asyncio.to_thread(run, valkey, "keys", "list")
    assert re.search(rf"^al ice +{account.id} +a b +5 +no limit +7 +20\d\d-", shown.stdout, re.M), shown
    assert made.stdout.strip() not in shown.stdout
    gone = await asyncio.to_thread(run, valkey, "keys", "revoke", "al ice")
    assert gone.returncode == 0
    assert await accounts.listed(broker) == []
    for wrong in ("yesterday", "2001-01-01", "5x"):
        refused = await asyncio.to_thread(run, valkey, "keys", "create", "x", "--expires", wrong)
        assert (refused.returncode, refused.stdout) == (2, ""), refused
        assert wrong in refused.stderr
