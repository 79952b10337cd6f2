"""What other programs ask: does the process live, can it serve, and what has it done."""

import asyncio

from aiohttp import web

from broker import metrics, registry
from broker.errors import FleetError
from webapp.state import BROKER

PATIENCE_SECONDS = 2.0
SCRAPE_SECONDS = 0.8  # for what Redis knows; the process itself is told of in any case


async def livez(request: web.Request) -> web.Response:
    """200 while the process answers at all."""
    return web.json_response({"ok": True})


async def show_metrics(request: web.Request) -> web.Response:
    """Prometheus' text format: of this process, and, while Redis is there, of the whole fleet."""
    broker = request.app[BROKER]
    families = [metrics.redis_up(False)]
    if broker.listener.alive:
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                states, counts = await registry.models(broker), await registry.counts(broker)
            waiting = {m.card.name: m.waiting for m in states}
            running = {m.card.name: m.running for m in states}
            families = [metrics.redis_up(True), *metrics.fleet(waiting, running, counts)]
        except (FleetError, TimeoutError):
            pass
    body, content_type = metrics.render(families)
    return web.Response(body=body, headers={"Content-Type": content_type})


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
