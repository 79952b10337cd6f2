"""A model's hub id in, the folder with its files out, and on the way how much of them has come.

Fetches weights as safetensors, never as pickles, and Python code only for a model that its operator trusts. Knows
nothing of what is in the files.
"""

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import DryRunFileInfo, snapshot_download
from huggingface_hub.errors import DryRunError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from broker.errors import ModelUnusable
from broker.sources import ModelSource
from workers.engine import Progress
from workers.engine.progress import downloading

logger = logging.getLogger("fleetchat.engine")

WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
CODE = "*.py"
WHY = {
    GatedRepoError: "its licence has to be accepted on its page there, and HF_TOKEN set",
    RepositoryNotFoundError: "there is none of this name, or it takes an HF_TOKEN that may read it",
    RevisionNotFoundError: "it has no such revision",
}


def download(source: ModelSource, progress: Progress) -> Path:
    """The folder with a repository's files; without a network the one that an earlier download left.

    Args:
        progress: called with 1 to 100, never falling; not at all when nothing has to be fetched.

    Raises:
        ModelUnusable: no such repository or revision, no access, or no network and nothing here.
    """
    what: dict[str, Any] = {
        "repo_id": source.source,
        "revision": source.revision or None,
        "allow_patterns": [*WANTED, CODE] if source.trust_remote_code else [*WANTED],
    }
    name = f"{source.source}@{source.revision}" if source.revision else source.source
    try:
        return Path(snapshot_download(**what, tqdm_class=downloading(_missing(what), progress)))
    except Exception as error:  # the hub's client, its transport and its validators each have a tree of their own
        logger.debug("download of %s failed", name, exc_info=True)
        why = next((said for kind, said in WHY.items() if isinstance(error, kind)), first_line(error))
        raise ModelUnusable(
            f"{name} is neither a folder here nor a model that could be had from the hub ({why})."
        ) from error


def first_line(error: BaseException) -> str:
    """The beginning of an error, to stand inside a sentence: its first line, and the next where it announces that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 1 + lines[0].endswith(":")])[:300].rstrip(" .:!")


def _missing(what: dict[str, Any]) -> int:
    """Bytes that have to be fetched."""
    try:
        files: list[DryRunFileInfo] = snapshot_download(
            **what, dry_run=True, tqdm_class=downloading(0, lambda percent: None)
        )
    except DryRunError:  # no network: the download itself looks into the cache
        return 0
    return sum(file.file_size or 0 for file in files if file.will_download)
