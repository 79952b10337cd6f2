"""Around every request: who may ask, what the answer may load, and errors as a page, as JSON, or in OpenAI's form."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from aiohttp import web

from broker.config import LOOPBACK, Config
from broker.errors import FleetError, Forbidden, NotFound
from webapp import access
from webapp.languages import render
from webapp.state import BROKER

logger = logging.getLogger("fleetchat.web")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SAFE = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "frame-src 'self'",
            "font-src 'self'",
            "manifest-src 'self'",
            "worker-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Of scripts and styles of a page: the other two are about documents, and would be a seventh of what a first visit loads.
PARTS = {name: HEADERS[name] for name in ("X-Content-Type-Options", "Referrer-Policy")}


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse foreign pages, turn errors into answers, set the headers that keep pages safe."""
    try:
        access.name(request)
        check_host(request)
        if request.method not in SAFE:
            check_origin(request)
        if access.is_api(request):
            response = access.preflight(request) or await _call(request, handler)
        else:
            response = await handler(request)
    except FleetError as error:
        response = _answer(request, error)
    except web.HTTPNotFound:
        response = _answer(request, NotFound())
    except web.HTTPException as error:
        response = _answer(request, FleetError(error.reason), status=error.status, headers=error.headers)
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        response = _answer(request, FleetError())
    if not response.prepared:
        for name, value in _headers(request, response).items():
            response.headers.setdefault(name, value)  # a sandbox has a policy of its own
    return response


async def unsigned(_: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: which versions run here is nobody's business, and takes room in every answer."""
    response.headers.popall("Server", None)


async def _call(request: web.Request, handler: Handler) -> web.StreamResponse:
    await access.admit(request)
    return await handler(request)


def check_host(request: web.Request) -> None:
    """Raises Forbidden for a name that a page of another site made point to this machine (DNS rebinding)."""
    config: Config = request.app[BROKER].config
    allowed = {urlsplit(origin).netloc for origin in config.origins}
    if config.loopback and request.url.host not in LOOPBACK and request.host not in allowed:
        raise Forbidden(
            "This server listens on this machine only, and not under that name. "
            "An operator can allow it by FLEETCHAT_ORIGINS."
        )


def check_origin(request: web.Request) -> None:
    """Raises Forbidden if a page of another site sent this. Programs send no Origin, and have no cookies to abuse."""
    origin = request.headers.get("Origin")
    if origin is None:
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Forbidden("Pages of other sites may not connect here.")
        return
    config: Config = request.app[BROKER].config
    if urlsplit(origin).netloc != request.host.lower() and origin not in config.origins:
        raise Forbidden("Pages of other sites may not connect here. An operator can allow one by FLEETCHAT_ORIGINS.")


def _headers(request: web.Request, response: web.StreamResponse) -> Mapping[str, str]:
    part = request.path.startswith("/static/") and response.content_type in ("text/javascript", "text/css")
    return PARTS if part else HEADERS


def _answer(
    request: web.Request, error: FleetError, status: int | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    status = status or error.status
    if access.is_api(request):
        return access.refusal(error, status, headers)
    more = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if allow := (headers or {}).get("Allow"):
        more["Allow"] = allow
    if "text/html" in request.headers.get("Accept", ""):
        page = render(request, "error.html", None, status, status=status, error=error, title=str(status))
        page.headers.update(more)
        return page
    return web.json_response({"error": error.to_map() | {"status": status}}, status=status, headers=more)
