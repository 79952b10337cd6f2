import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from broker import embedded
from broker.errors import FleetError, KeyRefused, ModelUnusable, Unavailable, UpstreamFailed
from tests.workers.engine import moderation_server
from tests.workers.engine.moderation_server import ModerationServer
from workers.engine import remote_engine
from workers.engine.remote_moderation import RemoteModeration

KEY = "sk-very-secret-key-0123456789"
Open = Callable[..., RemoteModeration]


@pytest.fixture
async def server() -> AsyncIterator[ModerationServer]:
    async with moderation_server.running() as server:
        yield server


@pytest.fixture
async def opened(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Opens endpoints, with pauses between tries that are short."""
    monkeypatch.setattr(remote_engine, "PAUSE_SECONDS", 0.01)
    monkeypatch.setenv("A_KEY", KEY)
    endpoints = []

    def open_(url: str, upstream: str = "", key_env: str = "") -> RemoteModeration:
        endpoints.append(RemoteModeration(url, upstream, key_env))
        return endpoints[-1]

    yield open_
    for endpoint in endpoints:
        await endpoint.close()


async def test_each_text_has_its_verdict(server: ModerationServer, opened: Open) -> None:
    endpoint = opened(server.url, "omni", "A_KEY")
    assert await endpoint.flags(["good", "a bad thing", "good"]) == ["", "harassment, violence", ""]
    assert server.bodies == [{"model": "omni", "input": ["good", "a bad thing", "good"]}]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_without_a_model_none_is_named(server: ModerationServer, opened: Open) -> None:
    await opened(server.url).flags(["good"])
    assert server.bodies == [{"input": ["good"]}]
    assert "Authorization" not in server.headers[0]


async def test_a_server_that_does_not_say_flagged_is_read_by_its_categories(
    server: ModerationServer, opened: Open
) -> None:
    server.answer = moderation_server.as_mistral
    assert await opened(server.url).flags(["good", "a bad thing"]) == ["", "violence"]


async def test_a_text_that_is_flagged_in_no_category_is_flagged(server: ModerationServer, opened: Open) -> None:
    server.answer = lambda texts: {"results": [{"flagged": True, "categories": {"violence": False}} for _ in texts]}
    assert await opened(server.url).flags(["good"]) == ["flagged"]


async def test_a_failure_is_tried_again(server: ModerationServer, opened: Open) -> None:
    server.failures = [503, 429]
    assert await opened(server.url).flags(["bad"]) == ["harassment, violence"]
    assert len(server.bodies) == 3


@pytest.mark.parametrize(("status", "kind", "tries"), [(503, Unavailable, 3), (401, KeyRefused, 1)])
async def test_a_refusal_is_an_error_without_the_key(
    status: int, kind: type[FleetError], tries: int, server: ModerationServer, opened: Open
) -> None:
    server.failures = [status] * 9
    with pytest.raises(kind) as raised:
        await opened(server.url, "omni", "A_KEY").flags(["good"])
    assert KEY not in str(raised.value)
    assert len(server.bodies) == tries


async def test_a_server_that_is_away_is_unavailable(opened: Open) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        await opened(f"http://127.0.0.1:{embedded.free_port()}/v1").flags(["good"])


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"results": []},
        {"results": [{"flagged": "no", "categories": {}}]},
        {"results": [{"flagged": False}]},
        {"results": [{"flagged": False, "categories": {}}] * 2},
        {"results": {"flagged": False}},
    ],
)
async def test_what_is_no_verdict_on_each_text_is_a_failure(
    document: Any, server: ModerationServer, opened: Open
) -> None:
    server.answer = lambda texts: document
    with pytest.raises(UpstreamFailed, match="no verdict"):
        await opened(server.url).flags(["good"])


async def test_who_stops_waiting_lets_go_of_the_connection(server: ModerationServer, opened: Open) -> None:
    server.free = 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await opened(server.url).flags(["good"])
    await asyncio.wait_for(server.gone.wait(), 5)


@pytest.mark.parametrize(("url", "key_env"), [("http://name:pass@host/v1", ""), ("http://host/v1", "NO_SUCH_KEY")])
async def test_an_address_or_key_that_cannot_be_used_is_refused_when_it_is_opened(
    url: str, key_env: str, opened: Open
) -> None:
    with pytest.raises(ModelUnusable, match="moderation: "):
        opened(url, "", key_env)
