"""A folder or hub id in; a model, its tokenizer and what an engine has to know about them out.

Everything that can be wrong with a checkpoint or a machine is found here and said in one sentence, a ModelUnusable
that names the folder. Weights come from safetensors alone, and code from the checkpoint runs only where its operator
asks for it. Blocks while it reads; knows no event loop, no engine and no requests.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]
import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TorchAoConfig,
)
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.quantizers.auto import AutoHfQuantizer

from broker.errors import ModelUnusable
from broker.sources import ModelSource
from workers.engine import Progress, hub, quantization
from workers.engine.hub import first_line
from workers.engine.progress import loading

if TYPE_CHECKING:
    from workers.engine.parallel import Rank

logger = logging.getLogger("fleetchat.engine")

DEVICES = ("cuda", "mps", "xpu", "npu", "cpu")  # in the order in which `auto` looks for them
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
VOCABULARIES = ("tokenizer.json", "*.model", "*.tiktoken", "vocab.*", "tekken.json")
FREE_SHARE = 0.9  # of the free memory that weights may take
DOWNLOAD_SHARE = 50  # percent of the progress that a download is, where there is one


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: int  # tokens that the model takes, prompt and answer together
    end_ids: frozenset[int]  # tokens that end an answer
    device: torch.device
    dtype: torch.dtype


def load(
    source: ModelSource, device: str, dtype: str, quantized: str, progress: Progress, rank: "Rank | None" = None
) -> Loaded:
    """The model in a folder or on the hub.

    Args:
        device: `auto`, or one of DEVICES, with a number where there are several (cuda:1).
        dtype: `auto`, or one of DTYPES. `auto` is the checkpoint's on an accelerator and float32 on a CPU, where
            bfloat16 is taken, with a warning, when float32 does not fit; bfloat16 with int4.
        quantized: `none`, `int8` or `int4`, see workers/engine/quantization.py. A checkpoint that is quantised already
            is loaded as it is, with `none`.
        progress: called with 0 to 100, never falling; the first half is the download where there is one.
        rank: which part of the model, where several processes share it; waits for the others.

    Raises:
        ModelUnusable: with one sentence that says what is wrong.
    """
    progress(0)
    place = pick_device(device)
    quantization.check(quantized, place)
    folder, start = find_folder(source, progress)
    config = _config(folder, source.trust_remote_code, quantized)
    files = weight_files(folder)
    shapes = tensor_shapes(files)
    tokenizer = _chat_tokenizer(folder, source)

    share = 1 if rank is None or place.type == "cpu" else rank.size  # on a CPU all parts are in one memory

    def needed(dtype: torch.dtype) -> int:
        if getattr(config, "quantization_config", None) is not None:  # they are loaded as they are
            return sum(file.stat().st_size for file in files) // share
        return quantization.needed_bytes(shapes, config.get_text_config().vocab_size, dtype, quantized) // share

    if rank is not None:
        rank.join(config, place)
    real = pick_dtype(dtype, config, place, quantized, needed, folder)
    method = quantization.config(quantized, place)
    with loading(lambda percent: progress(start + percent * (100 - start) // 100)):
        model = read_model(folder, config, place, real, method, source.trust_remote_code, rank)
    if method is not None:
        quantization.give_back()
    progress(100)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        context=context_of(model, tokenizer),
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


def find_folder(source: ModelSource, progress: Progress) -> tuple[Path, int]:
    """Where the model is, and the percentage that getting it there was; raises ModelUnusable."""
    folder = Path(source.source).expanduser()
    if folder.is_dir():
        return folder, 0
    if folder.exists():
        raise ModelUnusable(f"{source.source} is a file; give the folder that holds the model.")
    if source.source.startswith(("/", ".", "~")) or source.source.count("/") > 1:
        raise ModelUnusable(f"The folder {source.source} does not exist.")
    start = 0

    def tell(percent: int) -> None:
        nonlocal start
        start = DOWNLOAD_SHARE
        progress(percent * DOWNLOAD_SHARE // 100)

    folder = hub.download(source, tell)
    return folder, start


def is_encoder(folder: Path) -> bool:
    """Whether the model in a folder is for vectors: it has sentence-transformers' modules, or a language model without
    the head that an answer needs. What is wrong with its files is not said here.
    """
    if (folder / "modules.json").is_file():
        return True
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, named = raw.get("model_type"), raw.get("architectures")
        answers, fills = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind), MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(kind)
        headless = {name for name in (MODEL_MAPPING_NAMES.get(kind), fills) if answers or fills}
        return bool(named) and answers not in named and headless.issuperset(named)
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _config(folder: Path, trusted: bool, quantized: str) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelUnusable(f"{folder} has no config.json, so it is not a model.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
    except Exception as error:  # transformers raises whatever a strange value leads it to
        raise refusal(folder, f"{path} cannot be used", error) from error
    named = raw.get("architectures") or []
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    own = trusted and "AutoModelForCausalLM" in (raw.get("auto_map") or {})
    if not own and (
        known is None or (named and not any(name == known or name.endswith("ForCausalLM") for name in named))
    ):
        what = named[0] if named else config.model_type
        raise ModelUnusable(
            f"{folder} holds {what}, which is not a language model that answers; "
            "if it is for embeddings, set FLEETCHAT_ROLE=embed."
        )
    stored = getattr(config, "quantization_config", None)
    if stored is not None and quantized != "none":
        raise ModelUnusable(f"{folder} is quantised already, so it cannot be made {quantized} as well.")
    if stored is not None and not _is_readable(stored):  # transformers would take the numbers as they are
        raise ModelUnusable(f"{folder} is quantised in a way that transformers does not know ({str(stored)[:100]}).")
    return config


def _is_readable(stored: Any) -> bool:
    quantizer: Any = AutoHfQuantizer
    try:
        return bool(quantizer.supports_quant_method(stored))
    except (ValueError, AttributeError):  # it does not say by what
        return False


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights; finds what is missing."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            files = sorted(folder / name for name in names)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelUnusable(f"{index} cannot be read: {first_line(error)}.") from error
    if not files:
        if any(any(folder.glob(pattern)) for pattern in PICKLED):
            raise ModelUnusable(
                f"{folder} has its weights as pickle files only, which can run code; convert them to safetensors."
            )
        raise ModelUnusable(f"{folder} has no weights (*.safetensors).")
    for file in files:
        if not file.is_file():
            raise ModelUnusable(f"{folder} is not complete: {file.name} is missing.")
    return files


def tensor_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by its name, from the files' headers; finds what is cut short."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelUnusable(f"{file} is damaged or cut short ({first_line(error)}); fetch it again.") from error
    return shapes


def read_tokenizer(folder: Path, trusted: bool) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; raises ModelUnusable."""
    if not trusted and not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
        raise ModelUnusable(f"{folder} has no tokenizer (tokenizer.json).")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
        tokenizer.encode("a", add_special_tokens=False)  # settles what would else be set when threads encode at once
    except Exception as error:  # transformers raises whatever a strange file leads it to
        logger.debug("tokenizer of %s failed", folder, exc_info=True)
        raise refusal(folder, f"{folder} has no tokenizer that can be used", error) from error
    return tokenizer


def _chat_tokenizer(folder: Path, source: ModelSource) -> PreTrainedTokenizerBase:
    tokenizer = read_tokenizer(folder, source.trust_remote_code)
    if source.chat_template:
        try:
            tokenizer.chat_template = Path(source.chat_template).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelUnusable(f"The chat template of {source.name} cannot be read: {first_line(error)}.") from error
    if not tokenizer.chat_template:
        raise ModelUnusable(
            f"{folder} has no chat template, so it is not a chat model; "
            "if it is one, give its template as chat_template in FLEETCHAT_MODELS_FILE."
        )
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program: it can fail in any way
        where = source.chat_template or folder
        raise ModelUnusable(f"{where} has a chat template that does not work: {first_line(error)}.") from error
    tokenizer.clean_up_tokenization_spaces = False  # it spoils what a model writes, code above all
    return tokenizer


def pick_dtype(
    name: str, config: Any, device: torch.device, quantized: str, needed: Callable[[torch.dtype], int], folder: Path
) -> torch.dtype:
    """The type to compute in; raises ModelUnusable when it is unknown, or too large for the memory that is free."""
    if name != "auto" and name not in DTYPES:
        raise ModelUnusable(f"There is no dtype {name!r}; pick auto or one of {', '.join(DTYPES)}.")
    if quantized == "int4" and name not in ("auto", "bfloat16"):
        raise ModelUnusable(f"int4 computes in bfloat16, so it cannot be had with {name}.")
    room = free_bytes(device) * FREE_SHARE
    if name != "auto":
        dtype = DTYPES[name]
    elif quantized == "int4":
        dtype = torch.bfloat16
    elif device.type == "cpu":
        dtype = torch.float32
        if needed(dtype) > room:
            dtype = torch.bfloat16
            logger.warning("%s runs in bfloat16: there is not the memory for float32", folder)
    else:
        dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    if needed(dtype) > room:
        raise ModelUnusable(
            f"{folder} needs {needed(dtype) / 1e9:.1f} GB for its weights, "
            f"and of the free memory of {device} it may take {room / 1e9:.1f} GB."
        )
    return dtype


def read_model(
    folder: Path,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    method: TorchAoConfig | None,
    trusted: bool,
    rank: "Rank | None",
    loader: Any = AutoModelForCausalLM,  # its types know one form of the result
    optional: tuple[str, ...] = (),
) -> PreTrainedModel:
    """The model in a folder, on its device; raises ModelUnusable. It may lack tensors whose names begin as `optional`."""
    whole = {"device_map": {"": device}}
    where = whole if rank is None else {"distributed_config": DistributedConfig(tp_size=rank.size)}
    try:
        model, info = loader.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            quantization_config=method,
            use_safetensors=True,
            trust_remote_code=trusted,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, in one sentence
            **where,
        )
    except Exception as error:  # transformers raises whatever a strange checkpoint leads it to
        logger.debug("loading %s failed", folder, exc_info=True)
        raise refusal(folder, f"{folder} cannot be loaded", error) from error
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith(optional)):
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


def context_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
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


def refusal(folder: Path, what: str, error: Exception) -> ModelUnusable:
    """Why transformers refused: code that nobody has allowed is said in our own words."""
    if "trust_remote_code" in str(error):
        return ModelUnusable(
            f"{folder} needs Python code that comes with it; to have that run, "
            "set trust_remote_code = true for this model in FLEETCHAT_MODELS_FILE."
        )
    return ModelUnusable(f"{what}: {first_line(error)}.")
