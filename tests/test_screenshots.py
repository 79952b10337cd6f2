"""The command that takes the screenshots, on one state; and the README's pictures."""

import asyncio
import re
import struct
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.timeout(120)
async def test_a_state_is_taken_in_a_width_and_both_schemes(tmp_path):
    command = [sys.executable, str(TESTS / "screenshots"), str(tmp_path), "--only", "tags", "--width", "390"]
    running = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await running.communicate()
    assert (running.returncode, said) == (0, b"tags\n")
    taken = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert sorted(taken) == ["tags-390-dark.png", "tags-390-light.png"]
    assert {struct.unpack(">II", png[16:24]) for png in taken.values()} == {(390, 844)}
    assert len(set(taken.values())) == 2


def test_the_readme_shows_three_pictures_that_weigh_little():
    root = TESTS.parent
    shown = re.findall(r'<img src="([^"]+)"', (root / "README.md").read_text())
    assert len(shown) == 3
    pictures = [(root / one).read_bytes() for one in shown]
    assert all(picture[8:12] == b"WEBP" for picture in pictures)
    assert sum(map(len, pictures)) < 400_000
