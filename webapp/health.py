"""What other programs ask: does the process live, and can it serve."""

import asyncio

from aiohttp import web

from broker import registry
from broker.errors import FleetError
from webapp.state import BROKER

PATIENCE_SECONDS = 2.0


async def livez(request: web.Request) -> web.Response:
    """200 while the process answers at all."""
    return web.json_response({"ok": True})


async def readyz(request: web.Request) -> web.Response:
    """200 once Redis, the live subscription and one ready model are there; else 503, and which is missing."""
    broker = request.app[BROKER]
    redis, ready = False, False
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            states = [m.state for m in await registry.models(broker)]
            redis, ready = True, "ready" in states
    except (FleetError, TimeoutError):
        pass
    checks = {"redis": redis, "subscription": broker.listener.alive, "model": ready}
    return web.json_response({"ok": all(checks.values()), **checks}, status=200 if all(checks.values()) else 503)
