"""A server that says of texts whether they are harmful, by OpenAI's moderation endpoint: OpenAI, Mistral, a proxy.

Beside the remote engine, with its client: keys, addresses, redirects, refusals and further tries are as there.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import ClientSession

from broker.errors import Unavailable, UpstreamFailed
from broker.sources import ModelSource
from workers.engine import remote_wire
from workers.engine.remote_engine import open_session, persist, read_complaint
from workers.engine.remote_model import RemoteModel
from workers.engine.remote_pieces import DOCUMENT_BYTES, GONE, read

logger = logging.getLogger("fleetchat.remote")

NAME = "moderation"  # what its errors call it


class RemoteModeration:
    """The endpoint. Made where a loop runs, and closed by its owner."""

    def __init__(self, url: str, upstream: str, key_env: str) -> None:
        """Raises ModelUnusable: the address is none, or the key is not where it should be."""
        self._server = RemoteModel.of(ModelSource(NAME, url, upstream=upstream, key_env=key_env))
        self._model = {"model": upstream} if upstream else {}
        self._session: ClientSession = open_session()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def flags(self, texts: Sequence[str]) -> list[str]:
        """For each text the categories of harm that it is in, comma separated; "" for a harmless one.

        Raises:
            Overloaded, Unavailable: it cannot be reached, or takes no more.
            KeyRefused: it refuses our key.
            BadRequest: it refuses the texts.
            UpstreamFailed: it makes no sense.
        """
        return await persist(lambda: self._ask(texts))

    async def _ask(self, texts: Sequence[str]) -> list[str]:
        sent = self._model | {"input": list(texts)}
        try:
            response = await self._session.post(
                self._server.base / "moderations", json=sent, headers=self._server.headers, allow_redirects=False
            )
            async with response:
                if response.status != 200:
                    logger.warning("%s answered a check with status %d", self._server.base, response.status)
                    raise self._server.refusal(response, await read_complaint(response), sent)
                raw = await read(response.content, DOCUMENT_BYTES)
        except GONE as error:
            logger.warning("%s cannot be reached for a check: %s", self._server.base, type(error).__name__)
            raise Unavailable(f"The moderation server cannot be reached ({type(error).__name__}).") from None
        try:
            found = list(map(_flagged, remote_wire.parse(raw)["results"]))
        except remote_wire.WRONG:
            found = []
        if len(found) != len(texts):
            raise UpstreamFailed("The moderation server sent something that is no verdict on each text.")
        return found


def _flagged(result: Mapping[str, Any]) -> str:
    """Mistral has no `flagged`: there any category counts."""
    categories = result["categories"]
    named = ", ".join(name for name, applies in categories.items() if applies)
    flagged = result.get("flagged", bool(named))
    if not isinstance(flagged, bool):
        raise TypeError("flagged is no boolean")
    return (named or "flagged") if flagged else ""
