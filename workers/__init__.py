"""The floor that computes. `arq workers.Settings` is the way in.

`Settings` comes by module `__getattr__`, so that `workers.engine` and scripts import without Redis or environment.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "Settings":
        raise AttributeError(name)
    from workers.settings import make_settings

    return make_settings()
