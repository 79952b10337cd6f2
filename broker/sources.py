"""What `--model` and FLEETCHAT_MODEL take: a folder, a hub id, a built-in, or `NAME=` before any of them.

Comes in: that text. Goes out: the name under which the fleet knows the model, and where its weights are. Nothing is
loaded here, so the command can refuse a spelling mistake before it starts anything.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from broker.errors import SetupError
from broker.registry import valid_name

BUILT_IN = {
    "echo": "Repeats the prompt: for tests and development, no model behind it",
    "pocket": "A small demo model that comes with FleetChat",
}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's name in the fleet, and a folder, hub id or built-in to get it from."""

    name: str
    source: str

    @property
    def needs_torch(self) -> bool:
        return self.source != "echo"

    def __str__(self) -> str:
        return self.source if self.name == self.source else f"{self.name}={self.source}"


def parse(text: str) -> ModelSource:
    """The model that `text` names.

    Raises:
        SetupError: neither a folder, nor a hub id, nor a built-in; or the name cannot be used.
    """
    name, _, source = text.strip().rpartition("=")
    if "=" in text and not name:
        raise SetupError(f"{text}: there is no name before the =.")
    folder = Path(source).expanduser()
    if source in BUILT_IN:
        found = ModelSource(name or source, source)
    elif folder.is_dir():
        found = ModelSource(name or folder.resolve().name, str(folder.resolve()))
    elif source.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(source):
        raise SetupError(
            f"There is no folder {source!r}. A model is a folder with a model, "
            f"a hub id like Qwen/Qwen3-0.6B, or one of {', '.join(BUILT_IN)}."
        )
    else:
        found = ModelSource(name or source, source)
    if not valid_name(found.name):
        raise SetupError(
            f"{found.name!r} cannot be a model's name. It starts with a letter or digit, has at most "
            "128 of letters, digits and _ . : / @ + -, and is neither jobs nor training. Put NAME= before it."
        )
    return found
