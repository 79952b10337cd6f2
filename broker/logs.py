"""Logging of every process: one line a fact on standard error, never prompt text, keys or cookies.

FLEETCHAT_LOG=json makes each line a JSON object: time, level, logger, message, what the record has besides (`request_id`,
`worker`, ...), and `exception`, so that a traceback is one line, too. What other libraries log, or print on standard
error, goes the same way.
"""

import io
import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

SECRET = re.compile(r"(?<=://)(?:\S*|[^/?#\n]*)@|(?<=password=)[^&\s'\"]+")
STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}
LEVELS = {
    "": logging.WARNING,
    "fleetchat": logging.INFO,
    "arq": logging.WARNING,  # its lines about a job that went well say less than `workers.chat`'s
    "transformers": logging.WARNING,
}


def hide(text: str) -> str:
    """The text without the user names and passwords of the addresses in it."""
    return SECRET.sub(lambda found: "***@" if found[0].endswith("@") else "***", text)


class Text(logging.Formatter):
    """For people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return hide(super().format(record))


class Json(logging.Formatter):
    """For programs: one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": hide(record.getMessage()),
        }
        line |= {key: value for key, value in vars(record).items() if key not in STANDARD}
        if record.exc_info:
            line["exception"] = hide(self.formatException(record.exc_info))
        return json.dumps(line, default=str, ensure_ascii=False)


FORMATS = {"text": Text, "json": Json}


class Wrapped(io.TextIOBase):
    """In place of standard error: what libraries print there by themselves, as log lines."""

    encoding = "utf-8"

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        self._stream = stream
        self._formatter = formatter
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        self._line = self._line.rpartition("\r")[2]  # a progress bar writes over itself
        for line in filter(str.strip, lines):
            facts = {"name": "stderr", "levelno": logging.WARNING, "levelname": "WARNING", "msg": line}
            self._stream.write(self._formatter.format(logging.makeLogRecord(facts)) + "\n")
        self._stream.flush()
        return len(text)

    def fileno(self) -> int:
        return self._stream.fileno()


def configure(style: str = "text") -> None:
    """Send every line of this process through one handler; for the start of a process, before its threads."""
    handler, formatter = logging.StreamHandler(sys.__stderr__), FORMATS[style]()
    handler.setFormatter(formatter)
    if style == "json" and sys.__stderr__:
        sys.stderr = Wrapped(sys.__stderr__, formatter)
    logging.captureWarnings(True)
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):  # arq's, for one, which its command has given a handler
            logger.handlers.clear()
            logger.propagate = True
    logging.root.handlers[:] = [handler]
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger("aiohttp.server").addFilter(_without_quotes)


def _without_quotes(record: logging.LogRecord) -> bool:
    """aiohttp quotes what it could not read of a request, a cookie or a key perhaps."""
    error = record.exc_info[1] if record.exc_info else None
    if type(error).__module__ == "aiohttp.http_exceptions":
        record.msg, record.exc_info = f"{record.msg}: {type(error).__name__}", None
    return True
