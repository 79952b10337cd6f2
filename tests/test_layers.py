"""The direction of imports, read from the source: workers -> broker, webapp -> broker, never across, never upward."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"broker", "workers", "webapp"}
FORBIDDEN = {
    "broker": {"workers", "webapp", "torch", "transformers", "aiohttp", "jinja2"},
    "workers": {"webapp"},
    "webapp": {"workers", "torch", "transformers"},
}
ENGINE = {"redis", "arq"}  # which workers/engine does not know, nor what of the broker knows them
ENGINE_MAY = {"broker.errors", "broker.messages", "broker.sources"}
PICKLE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def modules(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, by its full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("floor", sorted(FLOORS))
def test_no_floor_imports_across_or_upward(floor):
    found = modules(floor)
    assert found
    for path in found:
        roots = {name.partition(".")[0] for name in imports(path)}
        assert not roots & FORBIDDEN[floor], path
        assert not roots & PICKLE, path


def test_the_engine_knows_no_redis_and_no_web():
    for path in modules("workers/engine"):
        names = imports(path)
        assert not {name.partition(".")[0] for name in names} & ENGINE, path
        outside = {n for n in names if n.startswith(("broker", "workers"))}
        allowed = {n for n in outside if n == "broker" or n.startswith((*ENGINE_MAY, "workers.engine"))}
        assert outside == allowed, path


def test_nothing_unpickles_weights():
    for floor in FLOORS:
        for path in modules(floor):
            text = path.read_text()
            assert "torch.load" not in text, path
            assert "torch.save" not in text, path


def test_the_top_level_is_what_was_agreed():
    agreed = {
        "pyproject.toml",
        "broker",
        "workers",
        "webapp",
        "tests",
        "docker",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    }
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".") and not p.name.endswith(".egg-info")}
    assert found <= agreed | {"__pycache__", "build", "shared"}
