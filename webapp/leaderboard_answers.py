"""How the leaderboard's pages and files are answered: made once for all who ask, compressed, 304 to who has it already."""

import asyncio
import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import ETag, web

from webapp.languages import Language
from webapp.middleware import HEADERS
from webapp.statics import STATICS

KEPT = 64  # answers that are ready to be sent
LEVEL = 6  # of gzip
POLICY = HEADERS["Content-Security-Policy"].replace("form-action 'none'", "form-action 'self'")  # filters are a form


@dataclass(frozen=True, slots=True)
class Ready:
    """An answer's body, and its gzip form."""

    body: bytes
    zipped: bytes


class Answers:
    """The latest answers of this process, by what they were made of."""

    def __init__(self) -> None:
        self._kept: dict[str, Ready] = {}
        self._making = asyncio.Lock()

    async def get(self, tag: str, make: Callable[[], str]) -> Ready:
        """The answer of that tag; of many who want a new one, one makes it, beside the event loop."""
        if tag not in self._kept:
            async with self._making:
                if tag not in self._kept:
                    self._kept[tag] = await asyncio.to_thread(_ready, make)
                    while len(self._kept) > KEPT:
                        del self._kept[next(iter(self._kept))]
        return self._kept[tag]


ANSWERS = web.AppKey("answers", Answers)


async def page(request: web.Request, tag: str, language: Language, make: Callable[[str], str]) -> web.Response:
    """A page in this language with filters, of what has this tag; `make` is told the tag of the page itself."""
    tag = digest(tag, language.tag, request.app[STATICS].version)
    response = await answer(request, tag, "text/html", lambda: make(tag))
    response.headers.update({"Content-Language": language.tag, "Content-Security-Policy": POLICY})
    return response


async def answer(request: web.Request, tag: str, content_type: str, make: Callable[[], str]) -> web.Response:
    """This answer, or 304 to who has it already."""
    headers = {"Cache-Control": "no-cache", "Vary": "Accept-Language, Accept-Encoding, Cookie"}
    if any(one.value == tag for one in request.if_none_match or ()):
        response = web.Response(status=304, headers=headers)
    else:
        ready = await request.app[ANSWERS].get(tag, make)
        zipped = "gzip" in request.headers.get("Accept-Encoding", "")
        headers |= {"Content-Encoding": "gzip"} if zipped else {}
        body = ready.zipped if zipped else ready.body
        response = web.Response(body=body, content_type=content_type, charset="utf-8", headers=headers)
    response.etag = ETag(tag, is_weak=True)
    return response


def digest(*parts: str) -> str:
    """A tag of what consists of these."""
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()


def _ready(make: Callable[[], str]) -> Ready:
    body = make().encode()
    return Ready(body, gzip.compress(body, LEVEL, mtime=0))
