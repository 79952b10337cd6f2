"""A web app on a real port, in this process, and a page's websocket."""

from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import httpx
import pytest
from aiohttp.test_utils import TestServer

from broker.config import Config
from broker.connection import Broker
from webapp.app import create_app
from webclient import Page


@pytest.fixture
async def site(broker: Broker, config: Config) -> AsyncIterator[TestServer]:
    """A running app; `site.app[BROKER]` is its own broker."""
    server = TestServer(create_app(replace(config, prompt_bytes=2000)), handler_cancellation=True)
    await server.start_server(shutdown_timeout=0.5)
    yield server
    await server.close()


@pytest.fixture
async def browser(site: TestServer) -> AsyncIterator[aiohttp.ClientSession]:
    """Somebody's cookies."""
    async with aiohttp.ClientSession(site.make_url("/"), cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


@pytest.fixture
async def page(browser: aiohttp.ClientSession) -> AsyncIterator[Page]:
    """An open websocket of this browser's."""
    async with browser.get("/"), browser.ws_connect("/ws") as ws:
        yield Page(ws)


@pytest.fixture
async def connections() -> AsyncIterator[tuple[httpx.Client, httpx.AsyncClient]]:
    """What OpenAI's clients call with, blocking and not; closed at the end, which they do not do by themselves."""
    with httpx.Client() as blocking:
        async with httpx.AsyncClient() as client:
            yield blocking, client
