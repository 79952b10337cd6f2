"""What `--model` and FLEETCHAT_MODEL take, and the TOML file that lists models with all that can be said of them.

Comes in: a folder, a hub id, the address of a server that speaks OpenAI's protocol, or a built-in, with `NAME=` before
it; or the name of a model in FLEETCHAT_MODELS_FILE. Goes out: the name under which the fleet knows the model, and where
it is. Nothing is loaded here, so the command can refuse a spelling mistake before it starts anything.
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
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's name in the fleet, where to get it from, and what its operator says of it."""

    name: str
    source: str  # a folder, hub id or built-in; of a remote model the server's address, as http://host:8000/v1
    revision: str = ""  # of a hub id: branch, tag or commit
    trust_remote_code: bool = False  # run the Python code that comes with the model
    chat_template: str = ""  # a jinja file in place of the model's own template
    upstream: str = ""  # a remote model's name over there; "" is `name`
    key_env: str = ""  # the environment variable that holds a remote server's key
    key_file: str = ""  # or the file
    context: int = 0  # tokens; 0: the model or the server says it
    description: str = ""
    licence: str = ""

    @property
    def engine(self) -> str:
        """Which engine runs it: echo, remote or torch."""
        if self.source == "echo":
            return "echo"
        return "remote" if self.source.startswith(("http://", "https://")) else "torch"

    @property
    def needs_torch(self) -> bool:
        return self.engine == "torch"

    @property
    def is_adapter(self) -> bool:
        """Whether it is a folder with a LoRA adapter, to be served on its base."""
        return (Path(self.source) / "adapter_config.json").is_file()

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
