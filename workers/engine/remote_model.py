"""A model that runs on another server: its address and key, its card, and what has been learnt about the server.

A key is read here, from the environment or a file, and stands in the headers only; an address that has one is refused.
"""

import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self

from aiohttp import ClientResponse
from yarl import URL

from broker.errors import FleetError, ModelUnusable
from broker.messages import ModelCard
from broker.sources import ModelSource
from workers.engine.remote_refusal import Complaint, quote, refusal

logger = logging.getLogger("fleetchat.remote")

CONTEXT_FIELDS = (  # of vLLM and SGLang, OpenRouter, Groq, Mistral, and of llama.cpp's `meta`
    "max_model_len",
    "context_length",
    "context_window",
    "max_context_length",
    "n_ctx",
    "n_ctx_train",
)


@dataclass(slots=True)
class RemoteModel:
    """A model, where it runs, and what has been learnt about its server."""

    card: ModelCard
    upstream: str
    base: URL
    headers: dict[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)  # what no message may contain
    unsupported: set[str] = field(default_factory=set)  # see `remote_wire.DISPENSABLE`

    @classmethod
    def of(cls, source: ModelSource) -> Self:
        """Raises ModelUnusable: the address is none, or the key is not where it should be."""
        try:
            base = URL(source.source)
            usable = base.host and not (base.user or base.password or base.query_string or base.fragment)
        except ValueError:
            usable = False
        if not usable:  # not shown: it may have a password in it
            raise ModelUnusable(
                f"{source.name}: its address cannot be used. It is like http://host:8000/v1, without a name, a "
                "password or a query; a key belongs in key_env or key_file."
            )
        key = _key(source)
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        card = ModelCard(source.name, context=source.context, licence=source.licence, description=source.description)
        return cls(card, source.upstream or source.name, base, headers, (key,) if key else ())

    def refusal(self, response: ClientResponse, complaint: Complaint, sent: Mapping[str, Any]) -> FleetError:
        """Our error for what the server says. Its words go to the user only, since they may quote the conversation."""
        wait = retry_after(response.headers)
        return refusal(self.card.name, response.status, complaint, sent, self.secrets, wait)

    def learn(self, listing: Mapping[str, Any]) -> None:
        """Take the context length from the server's list, unless the operator has said it."""
        if self.upstream not in listing:
            names = quote(", ".join(list(listing)[:5]), self.secrets)
            logger.warning("%s lists no model %s; it has %s", self.base, self.upstream, names)
        found = listing.get(self.upstream) or (next(iter(listing.values())) if len(listing) == 1 else {})
        context = self.card.context or _context(found)
        self.card = replace(self.card, context=context)


def _key(source: ModelSource) -> str:
    if source.key_env:
        key, where = os.environ.get(source.key_env, ""), f"the environment variable {source.key_env}"
    elif source.key_file:
        where = f"the file {source.key_file}"
        try:
            key = Path(source.key_file).expanduser().read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not plain text"
            raise ModelUnusable(f"{source.name}: the key cannot be read from {where}: {why}.") from None
    else:
        return ""
    key = key.strip()
    if not key:
        raise ModelUnusable(f"{source.name}: {where} is to hold the key of its server, and there is nothing in it.")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ModelUnusable(f"{source.name}: what is in {where} is no key: it has characters that no key has.")
    return key


def _context(entry: Any) -> int:
    if not isinstance(entry, dict):
        return 0
    known = (part.get(name) for part in (entry, entry.get("meta")) if isinstance(part, dict) for name in CONTEXT_FIELDS)
    return next((length for length in known if isinstance(length, int) and length > 0), 0)


def retry_after(headers: Mapping[str, str]) -> int | None:
    """The Retry-After of an answer: seconds, rounded up. The header has seconds or a date."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(math.ceil(max(seconds, 0)), 86_400) if math.isfinite(seconds) else None
