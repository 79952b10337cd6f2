"""A download from a hub that the test plays: what is fetched, how far it is, what is said when it fails."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from broker.errors import ModelUnusable
from broker.sources import ModelSource
from workers.engine import EngineOptions, open_engine
from workers.engine.hub import download
from workers.engine.model import load

COMMIT = "c" * 40
MORE = {"own.py": b"print()", "pytorch_model.bin": b"pickle", "README.md": b"a model"}


@dataclass
class Hub:
    """A hub with one repository, `some/model`, at the branch main and the tag v1."""

    folder: Path
    fetched: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *args: object) -> None:
        self.hub = hub
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in ("/api/models/some/model/revision/main", "/api/models/some/model/revision/v1"):
            self.answer(json.dumps({"id": "some/model", "sha": COMMIT}).encode())
        elif path == f"/api/models/some/model/tree/{COMMIT}":
            files = {str(f.relative_to(self.hub.folder)): f.stat().st_size for f in self.hub.folder.rglob("*.*")}
            found = [{"type": "file", "path": path, "size": size, "oid": "0"} for path, size in files.items()]
            self.answer(json.dumps(found).encode())
        elif path.startswith(f"/some/model/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/some/model/resolve/{COMMIT}/")
            data = (self.hub.folder / name).read_bytes()
            if self.command == "GET":
                self.hub.fetched.append(name)
            self.answer(data, {"X-Repo-Commit": COMMIT, "ETag": f'"{sha1(data).hexdigest()}"'})
        else:
            self.send_response(404)
            code = "RevisionNotFound" if path.startswith("/api/models/some/model/") else "RepoNotFound"
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def answer(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    copy = shutil.copytree(folder, tmp_path / "hub")
    for name, data in MORE.items():
        (copy / name).write_bytes(data)
    played = Hub(copy)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, played)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield played
        server.shutdown()
        thread.join()


def test_weights_are_fetched_and_neither_pickles_nor_code(hub: Hub) -> None:
    percents: list[int] = []
    folder = download(ModelSource("m", "some/model"), percents.append)
    assert sorted(hub.fetched) == sorted(file.name for file in folder.iterdir())
    assert not set(hub.fetched) & set(MORE)
    assert percents == sorted(percents)
    assert percents[-1] == 100
    hub.fetched.clear()
    percents.clear()
    assert download(ModelSource("m", "some/model"), percents.append) == folder
    assert hub.fetched == percents == []


def test_code_is_fetched_for_a_trusted_model(hub: Hub) -> None:
    download(ModelSource("m", "some/model", revision="v1", trust_remote_code=True), lambda percent: None)
    assert set(hub.fetched) & set(MORE) == {"own.py"}


def test_a_model_from_the_hub_loads_and_tells_how_far_it_is(hub: Hub) -> None:
    source = ModelSource("m", "some/model")
    first: list[int] = []
    load(source, "cpu", "auto", "none", first.append)
    assert first == sorted(first)
    assert first[0] == 0
    assert 50 in first
    assert any(50 < percent < 100 for percent in first)
    again: list[int] = []
    load(source, "cpu", "auto", "none", again.append)
    assert len([percent for percent in again if percent < 50]) > 5  # reading takes the whole scale


@pytest.mark.parametrize("said", [False, True])
async def test_a_models_files_from_the_hub_say_whether_it_is_for_vectors(hub: Hub, bert: Path, said: bool) -> None:
    async def serve() -> str:
        percents: list[int] = []
        options = EngineOptions((ModelSource("m", "some/model"),), device="cpu", cache_mb=1)
        engine = await open_engine(options, percents.append)
        await engine.close()
        assert percents == sorted(percents)
        assert percents[-1] == 100
        return engine.cards[0].kind

    if said:
        (hub.folder / "modules.json").write_text(
            '[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]'
        )
        (hub.folder / "1_Pooling").mkdir()
        (hub.folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    else:
        assert await serve() == "chat"
        shutil.rmtree(hub.folder.parent / "cache")
        shutil.copytree(bert, hub.folder, dirs_exist_ok=True)
    assert await serve() == "embedding"
    assert ("1_Pooling/config.json" in hub.fetched) == said


def test_without_a_network_an_earlier_download_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelSource("m", "some/model")
    folder = download(source, lambda percent: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert download(source, lambda percent: None) == folder


def test_what_the_hub_does_not_have_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(source: str, revision: str = "") -> str:
        with pytest.raises(ModelUnusable) as caught:
            download(ModelSource("m", source, revision), lambda percent: None)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    neither = "is neither a folder here nor a model that could be had from the hub"
    assert why("some/other").startswith(f"some/other {neither} (there is none of this name")
    assert why("some/model", "v2") == f"some/model@v2 {neither} (it has no such revision)."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert why("some/model").startswith(f"some/model {neither} (")
