"""A web app or a worker as it is, but for constants that a short test cannot wait for; it also tells its tasks.

    python tests/faults/member.py webapp|worker [MODULE.NAME=NUMBER ...]

SIGUSR1 makes it write the number of its asyncio tasks into the file that MEMBER_TASKS names.
"""

import asyncio
import importlib
import os
import runpy
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


def tell_tasks(*_: object) -> None:
    path = Path(os.environ["MEMBER_TASKS"])
    path.with_suffix(".new").write_text(str(len(asyncio.all_tasks())))
    path.with_suffix(".new").replace(path)


def main(kind: str, *changes: str) -> None:
    for change in changes:
        name, _, value = change.partition("=")
        module, _, constant = name.rpartition(".")
        assert hasattr(importlib.import_module(module), constant), name
        setattr(importlib.import_module(module), constant, float(value))
    signal.signal(signal.SIGUSR1, tell_tasks)
    if kind == "webapp":
        sys.argv = ["webapp"]
        runpy.run_module("webapp", run_name="__main__")
    else:
        sys.argv = ["arq", "workers.Settings"]
        runpy.run_module("arq", run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
