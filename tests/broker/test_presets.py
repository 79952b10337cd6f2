import asyncio

import pytest

from broker import presets
from broker.errors import BadRequest, NotFound

QUIET = {"temperature": 0.2, "system": "Be brief."}


async def test_a_preset_is_saved_written_over_renamed_and_deleted(broker):
    await presets.save(broker, "me", " brief ", QUIET)
    await presets.save(broker, "me", "Alpha", {})
    assert await presets.listed(broker, "me") == [("Alpha", {}), ("brief", QUIET)]
    await presets.save(broker, "me", "brief", {"top_k": 3})
    await presets.rename(broker, "me", "brief", "短")
    await presets.rename(broker, "me", "短", "短")
    await presets.delete(broker, "me", "Alpha")
    assert await presets.listed(broker, "me") == [("短", {"top_k": 3})]
    with pytest.raises(NotFound, match="Alpha"):
        await presets.delete(broker, "me", "Alpha")
    with pytest.raises(NotFound, match="Alpha"):
        await presets.rename(broker, "me", "Alpha", "x")


async def test_nobody_sees_or_changes_those_of_others(broker):
    await presets.save(broker, "me", "mine", QUIET)
    assert await presets.listed(broker, "you") == []
    with pytest.raises(NotFound):
        await presets.delete(broker, "you", "mine")
    assert await presets.listed(broker, "me") == [("mine", QUIET)]


async def test_a_rename_writes_nothing_over(broker):
    await presets.save(broker, "me", "one", QUIET)
    await presets.save(broker, "me", "two", {})
    with pytest.raises(BadRequest, match="already"):
        await presets.rename(broker, "me", "one", "two")
    assert await presets.listed(broker, "me") == [("one", QUIET), ("two", {})]


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "a\nb"])
async def test_a_name_that_cannot_be_used(broker, name):
    with pytest.raises(BadRequest, match="name"):
        await presets.save(broker, "me", name, {})


async def test_there_is_an_end_to_how_many_and_how_large(broker):
    with pytest.raises(BadRequest, match="32 KB"):
        await presets.save(broker, "me", "long", {"system": "語" * 11_000})
    for i in range(presets.MOST - 1):
        await presets.save(broker, "me", f"p{i}", {})
    both = await asyncio.gather(*(presets.save(broker, "me", n, {}) for n in "ab"), return_exceptions=True)
    assert [type(r) for r in both if r] == [BadRequest]
    await presets.save(broker, "me", "p0", QUIET)
    assert len(await presets.listed(broker, "me")) == presets.MOST
