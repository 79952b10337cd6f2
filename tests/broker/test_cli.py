"""What `fleetchat status` shows of a fleet; the other commands are in test_fleet."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

from broker import registry
from broker.messages import ModelCard
from fleet_process import environment

COMMAND = str(Path(sys.executable).with_name("fleetchat"))


async def test_status_shows_an_adapters_parent_and_the_first_of_a_workers_many_models(broker, valkey):
    cards = [ModelCard("law", state="ready", parent="llama"), *(ModelCard(f"m{i}", state="ready") for i in range(4))]
    await registry.beat(broker, "w", "ready", {"models": "law m0 m1 m2 m3", "slots": 4}, cards)
    done = await asyncio.to_thread(
        subprocess.run,
        [COMMAND, "status"],
        env=environment(valkey) | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert re.search(r"^law on llama +ready +1 +0 +4", done.stdout, re.M), done
    assert re.search(r"^w +law m0 m1 \+2 +ready", done.stdout, re.M), done
