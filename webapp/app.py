"""The web app: its state, its middleware and its routes, on one page.

Who calls whom: the browser loads a page, opens `/ws`, and asks; `webapp.chat` turns that into `broker.chat.ask` and
hands the frames to the socket as they were published. Everything else a page needs is JSON. Programs use the API, whose
routes are in `webapp.operations`.
"""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from broker import rules
from broker.config import Config
from broker.connection import Broker
from webapp import (
    access,
    arena,
    calls,
    conversations,
    docs,
    health,
    installed,
    languages,
    leaderboard,
    leaderboard_overview,
    pages,
    presets,
    sandbox,
    shares,
    sockets,
    statics,
    threads,
    transcripts,
)
from webapp.arena import ARENA, Arena
from webapp.calls import CALLS, OpenCalls
from webapp.docs import DOCS, Docs
from webapp.languages import PAGES, Pages
from webapp.leaderboard_answers import ANSWERS, Answers
from webapp.leaderboard_boards import BOARDS, Boards
from webapp.live import LIVE, Live
from webapp.middleware import guard, unsigned
from webapp.operations import OPERATIONS
from webapp.session import SESSIONS, Sessions
from webapp.sockets import OPEN, OpenSockets
from webapp.state import BROKER
from webapp.statics import STATICS
from webapp.titles import TITLES, Titles

BODY_BYTES = 65_536


def create_app(config: Config) -> web.Application:
    """The app, not yet connected: `cleanup_ctx` opens the broker when it starts."""
    app = web.Application(middlewares=[guard], client_max_size=BODY_BYTES)
    app[STATICS] = statics.load(languages.scripts())
    app[PAGES] = Pages.load(static=app[STATICS].prefix, prompt_bytes=config.prompt_bytes)
    app[OPEN], app[CALLS], app[DOCS] = OpenSockets(), OpenCalls(), Docs.load()
    app[ANSWERS] = Answers()
    arena_rules = rules.read(config.arena_file)
    app[transcripts.PLACES] = asyncio.Semaphore(transcripts.AT_ONCE)

    async def connected(app: web.Application) -> AsyncIterator[None]:
        async with Broker.open(config) as broker, Live(broker).running() as live, Titles(broker).running() as titles:
            app[BROKER], app[LIVE], app[SESSIONS], app[TITLES] = broker, live, Sessions(broker), titles
            app[BOARDS] = Boards(broker)
            app[ARENA] = Arena(broker, arena_rules, app[SESSIONS])
            yield

    app.cleanup_ctx.append(connected)
    app.cleanup_ctx.append(sockets.watched)
    app.cleanup_ctx.append(conversations.retained)
    app.on_shutdown.append(calls.close_all)
    app.on_shutdown.append(sockets.close_all)
    app.on_response_prepare.extend([access.sign, unsigned])
    app.add_routes(
        [
            web.get("/", pages.chat, name="home"),
            web.get("/c/{conversation}", pages.chat, name="conversation"),
            web.get("/arena", arena.page, name="arena"),
            web.get("/arena/{battle}", arena.page, name="arena-battle"),
            web.get("/compare", arena.page, name="compare"),
            web.get("/compare/{battle}", arena.page, name="compare-battle"),
            web.get("/battles/{battle}", arena.show, name="battle"),
            web.post("/battles/{battle}/vote", arena.vote, name="battle-vote"),
            web.post("/battles/{battle}/reveal", arena.reveal, name="battle-reveal"),
            web.post("/battles/{battle}/share", arena.share, name="battle-share"),
            web.get("/ws", sockets.websocket, name="websocket"),
            web.get("/models", pages.models, name="models"),
            web.get("/conversations", conversations.index, name="conversations"),
            web.get("/conversations/search", conversations.find, name="search"),
            web.get("/conversations/{conversation}", threads.show, name="thread"),
            web.put("/conversations/{conversation}/leaf", threads.choose, name="thread-leaf"),
            web.delete("/conversations/{conversation}/messages/{message}", threads.delete, name="message-delete"),
            web.put("/conversations/{conversation}/messages/{message}/rating", threads.rate, name="message-rating"),
            web.patch("/conversations/{conversation}", conversations.change, name="conversation-change"),
            web.delete("/conversations/{conversation}", conversations.delete, name="conversation-delete"),
            web.post("/conversations/{conversation}/restore", conversations.restore, name="conversation-restore"),
            web.get("/conversations/{conversation}/export", transcripts.export, name="conversation-export"),
            web.post("/conversations/{conversation}/shares", shares.create, name="conversation-share"),
            web.get("/c/{conversation}/print", shares.paper, name="conversation-print"),
            web.get("/s/{share}", shares.page, name="share"),
            web.get("/shares", shares.index, name="shares"),
            web.delete("/shares/{share}", shares.revoke, name="share-revoke"),
            web.get("/export", transcripts.export_all, name="export"),
            web.post("/import", transcripts.take, name="take"),
            web.get("/leaderboard", leaderboard.page, name="leaderboard"),
            web.get("/leaderboard/categories", leaderboard_overview.page, name="leaderboard-categories"),
            web.get("/leaderboard.json", leaderboard.as_json, name="leaderboard-json"),
            web.get("/leaderboard.csv", leaderboard.as_csv, name="leaderboard-csv"),
            web.get("/presets", presets.index, name="presets"),
            web.put("/presets/{preset:.+}", presets.save, name="preset"),
            web.patch("/presets/{preset:.+}", presets.rename, name="preset-rename"),
            web.delete("/presets/{preset:.+}", presets.delete, name="preset-delete"),
            *(route for operation in OPERATIONS for route in operation.routes),
            web.get("/openapi.json", docs.document, name="openapi"),
            web.get("/docs/api", docs.page, name="docs"),
            web.get("/livez", health.livez, name="livez"),
            web.get("/metrics", health.show_metrics, name="metrics"),
            web.get("/readyz", health.readyz, name="readyz"),
            web.get("/sandbox/{kind}", sandbox.show, name="sandbox"),
            web.get("/manifest.webmanifest", installed.manifest, name="manifest"),
            web.get("/sw.js", installed.worker, name="service-worker"),
            web.get("/offline", installed.offline, name="offline"),
            web.get("/static/{version}/{path:.+}", statics.serve, name="static"),
        ]
    )
    return app
