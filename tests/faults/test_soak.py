"""The soak for one minute; `python tests/faults/soak.py MINUTES` is the same for longer."""

import pytest

from faults.soak import soak


@pytest.mark.timeout(420)
async def test_nothing_grows_under_mixed_load(tmp_path, long):
    rows = await soak(tmp_path, 5 if long else 1)
    assert [str(row) for row in rows if not row.ok] == []
