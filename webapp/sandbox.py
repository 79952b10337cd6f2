"""Pages without any rights, in which the chat page shows what it may not load or draw itself.

A diagram needs a library that writes styles; a picture comes from elsewhere. Each gets a frame of a sandbox page: it has
an origin of its own, so neither cookies nor this site are within its reach, and its policy allows that one thing.
"""

from secrets import token_urlsafe

from aiohttp import web

from broker.errors import NotFound
from webapp.state import TEMPLATES

ALLOWED = {
    "diagram": "style-src 'unsafe-inline'",
    "picture": "img-src https: http:; style-src 'unsafe-inline'",
}
SCRIPTS = {
    "diagram": ("vendor/mermaid/mermaid.min.js", "sandbox/frame.js", "sandbox/diagram.js"),
    "picture": ("sandbox/frame.js", "sandbox/picture.js"),
}


async def show(request: web.Request) -> web.Response:
    """The frame for a `diagram` or a `picture`; the chat page hands it in by a message."""
    kind = request.match_info["kind"]
    if kind not in ALLOWED:
        raise NotFound
    nonce = token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; {ALLOWED[kind]}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox allow-scripts"
    )
    page = request.app[TEMPLATES].get_template("sandbox.html").render(nonce=nonce, scripts=SCRIPTS[kind])
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
    return web.Response(text=page, content_type="text/html", headers=headers)
