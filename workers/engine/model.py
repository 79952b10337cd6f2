"""A folder or hub id in; a model, its tokenizer and what an engine has to know about them out.

Everything that can be wrong with a checkpoint or a machine is found here and said in one sentence, a ModelUnusable
that names the folder. Weights come from safetensors alone and no code from the checkpoint is ever run. Blocks while
it reads; knows no event loop, no engine and no requests.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from broker.errors import ModelUnusable
from workers.engine import Progress

logger = logging.getLogger(__name__)

DEVICES = ("cuda", "mps", "xpu", "npu", "cpu")  # in the order in which `auto` looks for them
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
VOCABULARIES = ("tokenizer.json", "*.model", "*.tiktoken", "vocab.*", "tekken.json")
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")  # files that a download fetches
FREE_SHARE = 0.9  # of the free memory that weights may take


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: int  # tokens that the model takes, prompt and answer together
    end_ids: frozenset[int]  # tokens that end an answer
    device: torch.device
    dtype: torch.dtype


def load(source: str, device: str, dtype: str, progress: Progress) -> Loaded:
    """The model in a folder or on the hub.

    Args:
        source: a folder, or the id of a repository on the hub.
        device: `auto`, or one of DEVICES, with a number where there are several (cuda:1).
        dtype: `auto`, or one of DTYPES. `auto` is the checkpoint's on an accelerator and float32 on a CPU, where
            bfloat16 is taken, with a warning, when float32 does not fit.
        progress: called with 0 to 100, never falling.

    Raises:
        ModelUnusable: with one sentence that says what is wrong.
    """
    progress(0)
    place = pick_device(device)
    folder = _folder(source)
    config = _config(folder)
    sizes = _weights(folder)
    tokenizer = _tokenizer(folder)
    real = _pick_dtype(dtype, config, place, sum(sizes.values()), folder)
    model = _model(folder, config, place, real, progress)
    progress(100)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        context=_context(model, tokenizer),
        end_ids=_end_ids(model, tokenizer),
        device=place,
        dtype=model.dtype,
    )


def pick_device(name: str) -> torch.device:
    """The device of that name, or for `auto` the best one there is.

    Raises:
        ModelUnusable: unknown, or not in this machine.
    """
    if name == "auto":
        return torch.device(next(kind for kind in DEVICES if _count(kind)))
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (number and not number.isdecimal()):
        raise ModelUnusable(f"There is no device {name!r}; pick auto or one of {', '.join(DEVICES)}.")
    if int(number or 0) >= _count(kind):
        raise ModelUnusable(f"The device {name} was asked for, but this machine and its PyTorch do not have it.")
    return torch.device(name)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; of the machine, or of the container where that is less."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "xpu":
        return int(torch.xpu.mem_get_info(device)[0])
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return int(free)
    return int(free) if limit == "max" else max(0, min(free, int(limit) - int(used)))


def _count(kind: str) -> int:
    """How many devices of a kind there are."""
    if kind == "cpu":
        return 1
    module: Any = getattr(torch, kind, None)  # torch.npu comes with the torch_npu package
    return int(module.device_count()) if module is not None and module.is_available() else 0


def _folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelUnusable(f"{source} is a file; give the folder that holds the model.")
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise ModelUnusable(f"The folder {source} does not exist.")
    try:
        return Path(snapshot_download(source, allow_patterns=list(WANTED)))
    except Exception as error:  # the hub's client, its transport and its validators each have a tree of their own
        logger.debug("download of %s failed", source, exc_info=True)
        raise ModelUnusable(
            f"{source} is neither a folder here nor a model that could be had from the hub ({_line(error)})."
        ) from error


def _config(folder: Path) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelUnusable(f"{folder} has no config.json, so it is not a model.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever a strange value leads it to
        raise ModelUnusable(f"{path} cannot be used: {_line(error)}.") from error
    named = raw.get("architectures") or []
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if known is None or (named and not any(name == known or name.endswith("ForCausalLM") for name in named)):
        what = named[0] if named else config.model_type
        raise ModelUnusable(f"{folder} holds {what}, which is not a language model that answers.")
    return config


def _weights(folder: Path) -> dict[str, int]:
    """Elements of every tensor, by its name, from the files' headers; finds what is missing or cut short."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        try:
            files = sorted(
                {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelUnusable(f"{index} cannot be read: {_line(error)}.") from error
    if not files:
        if any(any(folder.glob(pattern)) for pattern in PICKLED):
            raise ModelUnusable(
                f"{folder} has its weights as pickle files only, which can run code; convert them to safetensors."
            )
        raise ModelUnusable(f"{folder} has no weights (*.safetensors).")
    sizes: dict[str, int] = {}
    for file in files:
        if not file.is_file():
            raise ModelUnusable(f"{folder} is not complete: {file.name} is missing.")
        try:
            with safe_open(file, framework="pt") as tensors:
                sizes |= {name: prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelUnusable(f"{file} is damaged or cut short ({_line(error)}); fetch it again.") from error
    return sizes


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
        raise ModelUnusable(f"{folder} has no tokenizer (tokenizer.json).")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.encode("a", add_special_tokens=False)  # settles what would else be set when threads encode at once
    except Exception as error:  # transformers raises whatever a strange file leads it to
        logger.debug("tokenizer of %s failed", folder, exc_info=True)
        raise ModelUnusable(f"{folder} has no tokenizer that can be used: {_line(error)}.") from error
    if not tokenizer.chat_template:
        raise ModelUnusable(f"{folder} has no chat template, so it is not a chat model; add a chat_template.jinja.")
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program: it can fail in any way
        raise ModelUnusable(f"{folder} has a chat template that does not work: {_line(error)}.") from error
    tokenizer.clean_up_tokenization_spaces = False  # it spoils what a model writes, code above all
    return tokenizer


def _pick_dtype(name: str, config: Any, device: torch.device, elements: int, folder: Path) -> torch.dtype:
    if name != "auto" and name not in DTYPES:
        raise ModelUnusable(f"There is no dtype {name!r}; pick auto or one of {', '.join(DTYPES)}.")
    free = free_bytes(device)
    if name != "auto":
        dtype = DTYPES[name]
    elif device.type == "cpu":
        dtype = torch.float32
        if elements * dtype.itemsize > free * FREE_SHARE:
            dtype = torch.bfloat16
            logger.warning("%s runs in bfloat16: there is not the memory for float32", folder)
    else:
        dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    needed = elements * dtype.itemsize
    if needed > free * FREE_SHARE and getattr(config, "quantization_config", None) is None:
        raise ModelUnusable(
            f"{folder} needs {needed / 1e9:.1f} GB for its weights and {device} has {free / 1e9:.1f} GB free."
        )
    return dtype


def _model(folder: Path, config: Any, device: torch.device, dtype: torch.dtype, progress: Progress) -> PreTrainedModel:
    loader: Any = AutoModelForCausalLM  # its types know one form of the result
    try:
        with _reported(progress):
            model, info = loader.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                device_map={"": device},
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below, in one sentence
            )
    except Exception as error:  # transformers raises whatever a strange checkpoint leads it to
        logger.debug("loading %s failed", folder, exc_info=True)
        raise ModelUnusable(f"{folder} cannot be loaded: {_line(error)}.") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelUnusable(
            f"{folder} is not complete: its files lack {len(missing)} of the model's tensors, {missing[0]} for one."
        )
    if wrong := sorted(info["mismatched_keys"]):
        raise ModelUnusable(
            f"{folder} has tensors of another shape than its config.json says, {wrong[0][0]} for one; they do not belong together."
        )
    loaded: PreTrainedModel = model
    loaded.train(False)
    return loaded


@contextmanager
def _reported(progress: Progress) -> Iterator[None]:
    """Tells `progress` which share of the tensors is in place; transformers' bars and tables stay off the terminal."""

    def quiet(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bar = factory(*args, **kwargs | {"disable": True})
        return _Bar(bar, args[0], progress) if kwargs.get("desc") == "Loading weights" and args else bar

    before, verbosity = transformers_logging.set_tqdm_hook(quiet), transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)
        transformers_logging.set_verbosity(verbosity)


class _Bar:
    """Passes the loading loop's items on and counts them."""

    def __init__(self, bar: Any, items: Any, progress: Progress) -> None:
        self._bar, self._items, self._progress = bar, items, progress

    def __iter__(self) -> Iterator[Any]:
        told = 0
        for done, item in enumerate(self._items):
            percent = min(99, 100 * done // len(self._items))
            if percent > told:
                told = percent
                self._progress(percent)
            yield item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


def _context(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The least of what the configuration and the tokenizer say; tokenizers that do not know say 10 ** 30."""
    text: Any = model.config.get_text_config()
    said = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 1 << 30
    return int(min(said, tokenizer.model_max_length if tokenizer.model_max_length >= 16 else said))


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    config: Any = model.generation_config
    said = config.eos_token_id if config is not None else None
    ids = {said} if isinstance(said, int) else set(said or ())
    own: Any = tokenizer.eos_token_id
    return frozenset(ids if own is None else ids | {int(own)})


def _line(error: BaseException) -> str:
    """The beginning of an error, to stand inside a sentence: its first line, and the next where it announces that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 1 + lines[0].endswith(":")])[:300].rstrip(" .:!")
