"""The page's own files, read once and served from memory, compressed, under an address that changes with them.

Our scripts and styles go out without the lines of their comments, which are for those who read the source and a sixth of
the page's weight; the lines stay, empty, so that an error's place is the same in both.
"""

import asyncio
import gzip
import hashlib
import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable

from aiohttp import web

from broker.errors import NotFound

TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
COMMENT = re.compile(rb"^[ \t]*(?:/\*(?:(?!\*/).)*\*/|//[^\n]*)$", re.M | re.S)  # that has its lines for itself
FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class StaticFile:
    """A file and its gzip form."""

    content_type: str
    body: bytes

    @cached_property
    def zipped(self) -> bytes:
        """Made when first asked for: of all files it takes half a second, and few visitors need the large ones."""
        return gzip.compress(self.body, mtime=0)


@dataclass(frozen=True, slots=True)
class Statics:
    """All files by path. `prefix` is the address they are under."""

    found: dict[str, StaticFile]
    version: str

    @property
    def prefix(self) -> str:
        return f"/static/{self.version}"


STATICS = web.AppKey("statics", Statics)


def load(made: Mapping[str, bytes]) -> Statics:
    """Read webapp/static; `made` are files that the app makes, by their path."""
    bodies = {path: _lean(path, node.read_bytes()) for path, node in _walk(files("webapp") / "static", "")} | dict(made)
    found = {path: _file(path, body) for path, body in bodies.items()}
    digest = hashlib.sha256()
    for path, file in sorted(found.items()):
        digest.update(path.encode() + file.body)
    return Statics(found, digest.hexdigest()[:12])


async def serve(request: web.Request) -> web.Response:
    """One file; its address holds the version, so a browser may keep it for ever."""
    statics = request.app[STATICS]
    file = statics.found.get(request.match_info["path"])
    if file is None:
        raise NotFound
    headers = {"Vary": "Accept-Encoding", "Cache-Control": "no-cache"}
    if request.match_info["version"] == statics.version:
        headers["Cache-Control"] = FOR_EVER
    body = file.body
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        zipped = await asyncio.to_thread(lambda: file.zipped)
        if len(zipped) < len(body):
            headers["Content-Encoding"], body = "gzip", zipped
    return web.Response(body=body, content_type=file.content_type, headers=headers)


def _lean(path: str, body: bytes) -> bytes:
    if path.startswith("vendor/") or not path.endswith((".js", ".css")):
        return body
    return COMMENT.sub(lambda comment: b"\n" * comment[0].count(b"\n"), body)


def _file(path: str, body: bytes) -> StaticFile:
    suffix = "." + path.rpartition(".")[2]
    content_type = TYPES.get(suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"
    return StaticFile(content_type, body)


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found: list[tuple[str, Traversable]] = []
    for node in folder.iterdir():
        if node.is_dir():
            found += _walk(node, f"{prefix}{node.name}/")
        else:
            found.append((prefix + node.name, node))
    return found
