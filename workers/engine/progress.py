"""How far a model is: the progress bars of two libraries, kept off the terminal and read for what they count."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils.tqdm import tqdm
from transformers.utils import logging as transformers_logging

from workers.engine import Progress

BYTES_BAR = "huggingface_hub.snapshot_download"  # of the hub's bars the one that counts what is on the disk
TENSORS_BAR = "Loading weights"


def downloading(total: int, progress: Progress) -> type[Any]:
    """A `tqdm_class` for snapshot_download, which tells `progress` the percentage of `total` bytes that have come."""
    lock = threading.Lock()  # the files come in threads
    base: Any = tqdm

    class Bar(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts = bool(total) and kwargs.get("name") == BYTES_BAR
            self._done = self._told = 0
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            if not self._counts:
                return
            with lock:
                self._done += int(n or 0)
                percent = min(100, 100 * self._done // total)
                if percent > self._told:
                    self._told = percent
                    progress(percent)

    return Bar


@contextmanager
def loading(progress: Progress) -> Iterator[None]:
    """Tells `progress` which percentage of the tensors is in place, while transformers loads a model in here."""

    def quiet(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bar = factory(*args, **kwargs | {"disable": True})
        return _Tensors(bar, args[0], progress) if kwargs.get("desc") == TENSORS_BAR and args else bar

    before, verbosity = transformers_logging.set_tqdm_hook(quiet), transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)
        transformers_logging.set_verbosity(verbosity)


class _Tensors:
    """Passes the loading loop's items on and counts them."""

    def __init__(self, bar: Any, items: Any, progress: Progress) -> None:
        self._bar, self._items, self._progress = bar, items, progress

    def __iter__(self) -> Iterator[Any]:
        told = 0
        for done, item in enumerate(self._items):
            percent = min(99, 100 * done // len(self._items))
            if percent > told:
                told = percent
                self._progress(percent)
            yield item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)
