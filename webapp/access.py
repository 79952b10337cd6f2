"""Who may use the API: the one check of keys for all its routes, limits, pages of other origins, and errors in its form.

A key comes as `Authorization: Bearer KEY` or `x-api-key: KEY`. While the fleet has none, the API is open if this app
listens on loopback only; with the first key, every call needs one.
"""

import math
import re
from collections.abc import Mapping

from aiohttp import web

from broker import accounts
from broker.accounts import NOBODY, Account, Allowance
from broker.errors import FleetError, Forbidden, NoSuchModel, RateLimited, Unauthorized
from broker.messages import new_id
from webapp import openai_answers
from webapp.state import BROKER

PATHS = ("/v1/", "/api/v1/", "/tokenize", "/detokenize", "/tokenizer_info")  # the API's
FREE = "/v1/models"  # what costs nothing: it asks no worker
RETRY_SECONDS = 2  # for a 429 or 503 that does not say
NAME = re.compile(r"[\x21-\x7e]{1,128}")  # of a request, as its sender calls it
SHOWN = "x-request-id, retry-after, " + ", ".join(
    f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
)

ACCOUNT = web.RequestKey("account", Account)
ALLOWANCE = web.RequestKey("allowance", Allowance)
REQUEST_ID = web.RequestKey("request_id", str)


def is_api(request: web.Request) -> bool:
    """Whether a path is the API's, also one that there is not."""
    return request.path.startswith(PATHS)


def name(request: web.Request) -> None:
    """Give the request the name that its sender has given it, or one of ours."""
    theirs = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = theirs if NAME.fullmatch(theirs) else new_id()


async def admit(request: web.Request) -> None:
    """Find out whose request this is, and count it.

    Raises:
        Unauthorized: there is no key where one is needed, or it is none of this fleet's.
        RateLimited: the key's limit is reached.
    """
    broker = request.app[BROKER]
    key = _key(request)
    account, needed = await accounts.find(broker, key)
    if account is None and needed:
        raise Unauthorized(
            "This API key is unknown, expired or revoked."
            if key
            else "An API key is missing. Send it as: Authorization: Bearer KEY."
        )
    if account is None and not broker.config.loopback:
        raise Unauthorized(
            "This server listens not only on its own machine (FLEETCHAT_HOST), and has no API key yet, so its API is closed. "
            "Its operator makes a key by: fleetchat keys create NAME."
        )
    request[ACCOUNT] = account or NOBODY
    if account is not None and account.limited and not request.path.startswith(FREE):
        allowance = request[ALLOWANCE] = await accounts.spend(broker, account, requests=1)
        if allowance.wait:
            raise RateLimited(
                f"This API key may use {account.limits} a minute. Please try again in {allowance.wait:.1f} s.",
                retry_after=math.ceil(allowance.wait),
            )


def check_model(request: web.Request, name: str) -> None:
    """Raises NoSuchModel unless the key of this request may use a model of that name."""
    if not request[ACCOUNT].allows(name):
        raise no_such_model(name)


def no_such_model(name: str) -> NoSuchModel:
    """What is said of a model that there is not, and of one that a key may not know of."""
    return NoSuchModel(f"There is no model called {name[:128]!r}, or your key may not use it.")


def charge(request: web.Request, tokens: int) -> None:
    """Take the tokens of an answer from what its key may use, also if it was left."""
    broker, account = request.app[BROKER], request[ACCOUNT]
    if account.tpm and tokens:
        broker.later(accounts.spend(broker, account, tokens=tokens, force=True))


def preflight(request: web.Request) -> web.Response | None:
    """The answer to a browser that asks before a page of another origin may call; None if this is no such question.

    Raises:
        Forbidden: that origin is not in FLEETCHAT_ORIGINS.
    """
    asked = request.headers.get("Access-Control-Request-Method")
    if request.method != "OPTIONS" or asked is None:
        return None
    if not _origin(request):
        raise Forbidden("Pages of this origin may not call. An operator can allow them by FLEETCHAT_ORIGINS.")
    headers = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": request.headers.get(
            "Access-Control-Request-Headers", "authorization, content-type"
        ),
        "Access-Control-Max-Age": "600",
    }
    return web.Response(status=204, headers=headers)


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: the headers of every answer of the API."""
    if not is_api(request):
        return
    headers = {"X-Request-Id": request.get(REQUEST_ID, ""), "Vary": "Origin"}
    if origin := _origin(request):
        headers |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": SHOWN}
    allowance = request.get(ALLOWANCE)
    if allowance is not None:
        for of, (limit, left, reset) in allowance.kinds.items():
            headers |= {
                f"x-ratelimit-limit-{of}": str(limit),
                f"x-ratelimit-remaining-{of}": str(left),
                f"x-ratelimit-reset-{of}": f"{reset:.3f}s",
            }
    response.headers.update(headers)


def refusal(error: FleetError, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error as programs get it."""
    more = {name: value for name, value in (headers or {}).items() if name == "Allow"}
    if error.retry_after is not None or status in (429, 503):
        more["Retry-After"] = str(error.retry_after or RETRY_SECONDS)
    if status == 401:
        more["WWW-Authenticate"] = "Bearer"
    return web.Response(
        body=openai_answers.dump(openai_answers.error(error, status)),
        status=status,
        content_type="application/json",
        headers=more,
    )


def _key(request: web.Request) -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else request.headers.get("X-Api-Key", "").strip()


def _origin(request: web.Request) -> str:
    """The origin of a page that may call from elsewhere; "" for every other one."""
    origin = request.headers.get("Origin", "")
    return origin if origin in request.app[BROKER].config.origins else ""
