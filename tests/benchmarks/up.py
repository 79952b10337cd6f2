"""How long `fleetchat up` takes until one can chat, how long it takes to stop, and what its page weighs.

python tests/benchmarks/up.py [MODEL]        default: pocket
"""

import gzip
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from broker.embedded import free_port


def get(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request) as response:
        return bytes(response.read())


def first_load(base: str) -> int:
    """Compressed bytes of the page and of everything that its HTML, and the modules that it names, load at once."""
    page = get(base + "/")
    html = (gzip.decompress(page) if page[:2] == b"\x1f\x8b" else page).decode()
    return len(page) + sum(len(get(base + path)) for path in set(re.findall(r'(?:src|href)="(/static/[^"#]+)"', html)))


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "pocket"
    port = free_port()
    with tempfile.TemporaryDirectory() as data:
        command = [Path(sys.executable).with_name("fleetchat"), "up", "--no-browser", "--model", model]
        begun = time.monotonic()
        with subprocess.Popen(
            [*command, "--data", data, "--port", str(port)], stdout=subprocess.PIPE, text=True
        ) as fleet:
            assert fleet.stdout
            for line in fleet.stdout:
                if "is ready at" in line:
                    break
            else:
                raise SystemExit("it did not start")
            ready = time.monotonic() - begun
            weight = first_load(f"http://127.0.0.1:{port}")
            begun = time.monotonic()
            fleet.send_signal(signal.SIGINT)
            fleet.communicate()
            print(f"{model}: ready after {ready:.1f} s, stopped after {time.monotonic() - begun:.1f} s")
    static = Path(__file__).parents[2] / "webapp" / "static"
    everything = sum(
        len(gzip.compress(p.read_bytes())) for p in static.rglob("*") if p.suffix in (".js", ".css", ".svg")
    )
    print(
        f"page: {weight / 1000:.0f} KB compressed at first, {everything / 1000:.0f} KB with all that it can load later"
    )


if __name__ == "__main__":
    main()
