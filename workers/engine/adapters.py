"""LoRA adapters on a model's linear layers: one set of weights, and per token of a step what its adapter adds.

Comes in: folders as peft writes them (adapter_config.json and adapter_model.safetensors), and before each forward pass
which adapter each request's tokens belong to. Each adapted layer computes its plain output, and then, for each adapter
in the step, `x A B` for that adapter's rows alone; a step of the base alone costs one look into an empty dict a layer.
Which layers are adapted is read from the tensors' names. Knows no requests and no cache.
"""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from broker.errors import ModelUnusable
from workers.engine.transfer import send

logger = logging.getLogger("fleetchat.engine")

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
BEYOND = (  # settings of peft's LoraConfig with which an adapter is more than A and B
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
BASE_CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin that change the base's weights too

Pairs = dict[str, tuple[Tensor, Tensor]]
"""By a layer's path: A of shape (rank, in) and B of shape (out, rank), the scale in B."""


class Adapters:
    """LoRA adapters that share one model's weights, applied per token."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._layers: dict[str, _Layer] = {}
        self._count = 0
        self._spans: tuple[tuple[int, int], ...] = ()
        self._rows: dict[int, Tensor | None] = {}  # of each adapter in the step; None: all of them

    def add(self, folder: Path) -> int:
        """Load an adapter.

        Returns:
            Its number, from 1; 0 is the base.

        Raises:
            ModelUnusable: with one sentence; then nothing has been added.
        """
        pairs = self._pairs(folder, _config(folder))
        self._count += 1
        for path, pair in pairs.items():
            if path not in self._layers:
                module: Any = self._model.get_submodule(path)
                module.forward = self._layers[path] = _Layer(module.forward, self._rows)
            self._layers[path].pairs[self._count] = pair
        return self._count

    def use(self, spans: Sequence[tuple[int, int]]) -> None:
        """Say what the next forward passes hold; to be called before each whose tokens are others.

        Args:
            spans: (adapter's number, tokens) of each request, in the order in which they stand in the step.
        """
        if (step := tuple(spans)) == self._spans:
            return
        self._spans = step
        self._rows.clear()
        present = {number for number, _ in step}
        if len(present) == 1:
            self._rows |= dict.fromkeys(present - {0})
        elif present - {0}:
            of_token = [number for number, tokens in step for _ in range(tokens)]
            device = self._model.device
            self._rows |= {
                n: send([at for at, number in enumerate(of_token) if number == n], device)
                for n in sorted(present - {0})
            }

    def _pairs(self, folder: Path, config: Mapping[str, Any]) -> Pairs:
        """An adapter's weights as the layers need them, checked against those."""
        halves: dict[str, dict[str, Tensor]] = {}
        for name, tensor in _tensors(folder).items():
            found = TENSOR.fullmatch(name)
            if found is None:
                raise ModelUnusable(f"The adapter {folder} changes {name}, which is more than LoRA on linear layers.")
            halves.setdefault(found[1], {})[found[2]] = tensor
        if not halves:
            raise ModelUnusable(f"The adapter {folder} has no tensors in {WEIGHTS}.")
        modules: dict[str, Any] = dict(self._model.named_modules())
        model: Any = self._model
        head = model.get_output_embeddings()
        pairs = {}
        for path, half in halves.items():
            module = modules.get(path)
            if module is None:
                raise ModelUnusable(f"The adapter {folder} is for another model: this one has no layer {path}.")
            width = _width(module)
            apart = module is head or ".experts." in path  # they do not get all tokens of the step in their order
            if width is None or apart:
                raise ModelUnusable(f"The adapter {folder} changes {path}, a layer that cannot have an adapter here.")
            pairs[path] = self._pair(folder, path, half, width, config)
        return pairs

    def _pair(
        self, folder: Path, path: str, half: Mapping[str, Tensor], width: tuple[int, int], config: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        rank, scale = _rank_and_scale(folder, config, path)
        shapes = {"A": (rank, width[0]), "B": (width[1], rank)}
        for side, shape in shapes.items():
            if side not in half:
                raise ModelUnusable(f"The adapter {folder} is not complete: {path} has no lora_{side}.")
            if tuple(half[side].shape) != shape:
                raise ModelUnusable(
                    f"The adapter {folder} has lora_{side} of shape {tuple(half[side].shape)} for {path}, "
                    f"where this model and its {CONFIG} need {shape}."
                )
        to: dict[str, Any] = {"device": self._model.device, "dtype": self._model.dtype}
        return half["A"].to(**to), (half["B"].float() * scale).to(**to)


class _Layer:
    """A linear layer's forward pass with its adapters; stands in place of the module's own `forward`."""

    def __init__(self, base: Any, rows: Mapping[int, Tensor | None]) -> None:
        self._base = base
        self._rows = rows
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """x is (..., tokens, in), the result (..., tokens, out)."""
        out: Tensor = self._base(x)
        for number, rows in self._rows.items():
            pair = self.pairs.get(number)
            if pair is None:
                continue
            a, b = pair
            if rows is None:
                out += linear(linear(x, a), b)
            else:
                out.index_add_(-2, rows, linear(linear(x.index_select(-2, rows), a), b))
        return out


def base_of(folder: Path) -> str:
    """The model that an adapter was made for, as its adapter_config.json says: a folder or a hub id.

    Raises:
        ModelUnusable: no configuration, or it does not say.
    """
    base = _read(folder).get("base_model_name_or_path")
    if not base:
        raise ModelUnusable(f"{folder / CONFIG} does not say which model the adapter is for (base_model_name_or_path).")
    return str(base)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelUnusable(f"{folder} has no {CONFIG}, so it is not an adapter.") from error
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"{path} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise ModelUnusable(f"{path} does not hold a JSON object.")
    return config


def _config(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter that can be served."""
    config = _read(folder)
    if config.get("peft_type") != "LORA":
        raise ModelUnusable(f"The adapter {folder} is of the kind {config.get('peft_type')}; only LORA can be served.")
    strange = [name for name in BEYOND if config.get(name)]
    strange += ["bias"] if config.get("bias", "none") != "none" else []
    begun = str(config.get("init_lora_weights"))
    strange += [f"init_lora_weights={begun}"] if begun.startswith(BASE_CHANGED) else []
    if strange:
        raise ModelUnusable(f"The adapter {folder} uses {strange[0]}, which cannot be served; merge it into its base.")
    return config


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = " (its .bin is a pickle, which can run code; convert it)" if any(folder.glob("*.bin")) else ""
        raise ModelUnusable(f"The adapter {folder} has no {WEIGHTS}{pickled}.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelUnusable(f"{path} is damaged or cut short ({error}); fetch it again.") from error


def _rank_and_scale(folder: Path, config: Mapping[str, Any], path: str) -> tuple[int, float]:
    """A layer's rank, and what `x A B` is multiplied with; patterns match as in peft: the first that ends the path."""

    def of_layer(patterns: str, default: str) -> float:
        for pattern, value in (config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", path):
                return float(value)
        return float(config[default])

    try:
        rank, alpha = of_layer("rank_pattern", "r"), of_layer("alpha_pattern", "lora_alpha")
        return int(rank), alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
        raise ModelUnusable(f"{folder / CONFIG} has no usable rank or alpha for {path} ({error!r}).") from error


def _width(module: Any) -> tuple[int, int] | None:
    """(in, out) of a linear layer, quantised or not; GPT-2's Conv1D is one too. None for what is not linear."""
    for names in (("in_features", "out_features"), ("nx", "nf")):
        if all(hasattr(module, name) for name in names):
            return getattr(module, names[0]), getattr(module, names[1])
    return None
