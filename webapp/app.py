"""The web app: its state, its middleware and its routes, on one page.

Who calls whom: the browser loads a page, opens `/ws`, and asks; `webapp.chat` turns that into `broker.chat.ask` and
hands the frames to the socket as they were published. Everything else a page needs is JSON. Programs use /v1, which is
`webapp.openai_api`, and ask tokenizers by `webapp.tokens`.
"""

from collections.abc import AsyncIterator

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from broker.config import Config
from broker.connection import Broker
from webapp import access, calls, conversations, health, openai_api, pages, presets, sockets, statics, threads, tokens
from webapp.calls import CALLS, OpenCalls
from webapp.live import LIVE, Live
from webapp.middleware import guard
from webapp.session import SESSIONS, Sessions
from webapp.sockets import OPEN, OpenSockets
from webapp.state import BROKER, TEMPLATES
from webapp.statics import STATICS

BODY_BYTES = 65_536


def create_app(config: Config) -> web.Application:
    """The app, not yet connected: `cleanup_ctx` opens the broker when it starts."""
    app = web.Application(middlewares=[guard], client_max_size=BODY_BYTES)
    app[STATICS], app[OPEN], app[CALLS] = statics.load(), OpenSockets(), OpenCalls()
    app[TEMPLATES] = Environment(
        loader=PackageLoader("webapp"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    app[TEMPLATES].globals |= {"static": app[STATICS].prefix, "prompt_bytes": config.prompt_bytes}

    async def connected(app: web.Application) -> AsyncIterator[None]:
        async with Broker.open(config) as broker, Live(broker).running() as live:
            app[BROKER], app[LIVE], app[SESSIONS] = broker, live, Sessions(broker)
            yield

    app.cleanup_ctx.append(connected)
    app.cleanup_ctx.append(sockets.watched)
    app.on_shutdown.append(calls.close_all)
    app.on_shutdown.append(sockets.close_all)
    app.on_response_prepare.append(access.sign)
    app.add_routes(
        [
            web.get("/", pages.chat, name="home"),
            web.get("/c/{conversation}", pages.chat, name="conversation"),
            web.get("/ws", sockets.websocket, name="websocket"),
            web.get("/models", pages.models, name="models"),
            web.get("/conversations", conversations.index, name="conversations"),
            web.get("/conversations/{conversation}", threads.show, name="thread"),
            web.put("/conversations/{conversation}/leaf", threads.choose, name="thread-leaf"),
            web.delete("/conversations/{conversation}/messages/{message}", threads.delete, name="message-delete"),
            web.put("/conversations/{conversation}/messages/{message}/rating", threads.rate, name="message-rating"),
            web.patch("/conversations/{conversation}", conversations.rename, name="conversation-rename"),
            web.delete("/conversations/{conversation}", conversations.delete, name="conversation-delete"),
            web.get("/presets", presets.index, name="presets"),
            web.put("/presets/{preset:.+}", presets.save, name="preset"),
            web.patch("/presets/{preset:.+}", presets.rename, name="preset-rename"),
            web.delete("/presets/{preset:.+}", presets.delete, name="preset-delete"),
            web.get("/v1/models", openai_api.models, name="v1-models"),
            web.get("/v1/models/{id:.+}", openai_api.model, name="v1-model"),
            web.post("/v1/chat/completions", openai_api.chat_completions, name="v1-chat-completions"),
            web.post("/v1/completions", openai_api.completions, name="v1-completions"),
            web.post("/v1/embeddings", openai_api.embeddings, name="v1-embeddings"),
            web.post("/tokenize", tokens.tokenize, name="tokenize"),
            web.post("/v1/tokenize", tokens.tokenize, name="v1-tokenize"),
            web.post("/detokenize", tokens.detokenize, name="detokenize"),
            web.post("/v1/detokenize", tokens.detokenize, name="v1-detokenize"),
            web.get("/tokenizer_info", tokens.tokenizer_info, name="tokenizer-info"),
            web.post("/api/v1/token_check", tokens.token_check, name="token-check"),
            web.get("/livez", health.livez, name="livez"),
            web.get("/metrics", health.show_metrics, name="metrics"),
            web.get("/readyz", health.readyz, name="readyz"),
            web.get("/static/{version}/{path:.+}", statics.serve, name="static"),
        ]
    )
    return app
