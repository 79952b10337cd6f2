"""Logging of every process: one line a fact on standard error, never prompt text, keys or cookies."""

import logging
import sys


def configure(level: int = logging.INFO) -> None:
    """Give the `fleetchat` loggers a handler; arq and aiohttp bring their own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger("fleetchat")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
