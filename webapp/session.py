"""Who is asking: a random owner id in a signed cookie, made at the first visit.

The key that signs lies in Redis, made once, so any web process of a fleet accepts any cookie. Several fleets on one
machine share a browser's cookies (a cookie does not know ports), so its name tells the fleets apart.
"""

import hashlib
import hmac
import secrets

from aiohttp import web

from broker.connection import Broker
from broker.secret import key
from broker.secret import load as load_secret

KEEP_SECONDS = 400 * 86_400  # as long as browsers allow


class Sessions:
    """Reads and writes the cookie."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._secret = b""

    async def owner(self, request: web.Request) -> str:
        """The owner of this request; somebody new gets an id that owns nothing."""
        return (await self._read(request))[0]

    async def remember(self, request: web.Request, response: web.StreamResponse) -> str:
        """The owner; somebody new gets the cookie with this response."""
        owner, known = await self._read(request)
        if not known:
            secret = await self._get_secret()
            response.set_cookie(
                self._name(secret),
                f"{owner}.{self._sign(secret, owner)}",
                max_age=KEEP_SECONDS,
                httponly=True,
                samesite="Lax",
                secure=request.secure or f"https://{request.host}" in self._broker.config.origins,
            )
        return owner

    async def key(self, purpose: str) -> bytes:
        """A key for something beside the cookie, the same in every web process of the fleet."""
        return key(await self._get_secret(), purpose)

    async def _read(self, request: web.Request) -> tuple[str, bool]:
        secret = await self._get_secret()
        owner, _, signature = request.cookies.get(self._name(secret), "").partition(".")
        if hmac.compare_digest(_bytes(signature), _bytes(self._sign(secret, owner))):
            return owner, True
        return secrets.token_hex(12), False

    async def _get_secret(self) -> bytes:
        if not self._secret:
            self._secret = await load_secret(self._broker)
        return self._secret

    @staticmethod
    def _name(secret: bytes) -> str:
        return "fleetchat_" + hashlib.sha256(b"name" + secret).hexdigest()[:8]

    @staticmethod
    def _sign(secret: bytes, owner: str) -> str:
        return hmac.new(secret, _bytes(owner), hashlib.sha256).hexdigest()


def _bytes(text: str) -> bytes:
    """As they came: a header may hold bytes that are no UTF-8."""
    return text.encode(errors="surrogateescape")


SESSIONS = web.AppKey("sessions", Sessions)
