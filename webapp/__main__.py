"""`python -m webapp`: the web app by itself, on FLEETCHAT_HOST and FLEETCHAT_PORT."""

import errno
import gc
import logging
import socket
import sys

from aiohttp import web

from broker import logs
from broker.config import Config
from broker.errors import SetupError
from webapp.app import create_app

logger = logging.getLogger("fleetchat.web")

UNUSABLE = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)


def main() -> None:
    """Serve until SIGTERM or SIGINT. A setting or address that cannot be used: one sentence, exit code 2."""
    try:
        config = Config.from_env()
        logs.configure(config.log)
        app = create_app(config)
        gc.collect()
        gc.freeze()  # what the imports brought is never garbage; to look through it stops all streams meanwhile
        logger.info("listening on http://%s:%d", config.host, config.port)
        web.run_app(
            app,
            host=config.host,
            port=config.port,
            print=None,
            access_log=None,
            shutdown_timeout=1.0,  # for the last words, see `webapp.calls`
            handler_cancellation=True,  # who goes away lets go of the answers that were asked for
        )
    except SetupError as error:
        sys.exit(_complain(str(error)))
    except OSError as error:
        if not isinstance(error, socket.gaierror) and error.errno not in UNUSABLE:
            raise
        where = f"{config.host}:{config.port}"
        sys.exit(
            _complain(f"Cannot listen on {where} ({error.strerror}). Choose another FLEETCHAT_PORT or FLEETCHAT_HOST.")
        )


def _complain(sentence: str) -> int:
    print(logs.hide(sentence), file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
