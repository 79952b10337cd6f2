"""Weights of 8 bits on a CPU: small, near the original, the same for every batch mate; what cannot be is said."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from broker.errors import ModelUnusable
from broker.sources import ModelSource
from tests.tiny_model import build_adapter
from workers.engine.adapters import Adapters
from workers.engine.model import Loaded, load
from workers.engine.quantization import check, config, needed_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
IDS = list(range(10, 40))


def loaded(folder: Path, quantized: str = "int8", dtype: str = "auto") -> Loaded:
    return load(ModelSource("m", str(folder)), "cpu", dtype, quantized, lambda percent: None)


def logits(model: Loaded, *rows: list[int]) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.model(torch.tensor(rows)).logits
    return found


def test_a_model_in_8_bits_is_near_the_original_and_smaller(folder: Path) -> None:
    whole, small = loaded(folder, "none"), loaded(folder)
    exact = logits(whole, IDS)
    assert small.dtype == torch.float32
    assert 0 < (logits(small, IDS) - exact).norm() < 0.05 * exact.norm()
    for layer in small.model.model.layers:
        assert layer.mlp.up_proj.weight.qdata.dtype == torch.int8
    assert small.model.get_input_embeddings().weight.equal(whole.model.get_input_embeddings().weight)
    shapes = {name: tuple(parameter.shape) for name, parameter in whole.model.named_parameters()}
    vocabulary = whole.model.config.vocab_size
    held = sum(p.qdata.nbytes if hasattr(p, "qdata") else p.nbytes for p in small.model.parameters())
    assert needed_bytes(shapes, vocabulary, torch.float32, "int8") == held
    assert held < 0.6 * needed_bytes(shapes, vocabulary, torch.float32, "none")


def test_an_answer_in_8_bits_does_not_depend_on_its_batch_mates(folder: Path) -> None:
    model = loaded(folder)
    others = [[i % 300 + 3 for i in range(n, n + 30)] for n in (50, 90, 200)]
    alone = logits(model, IDS)[0]
    assert torch.allclose(logits(model, others[0], IDS, *others[1:])[1], alone, atol=1e-4)


def test_8_bits_in_bfloat16(folder: Path) -> None:
    exact = logits(loaded(folder, "none"), IDS)
    model = loaded(folder, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert (logits(model, IDS) - exact).norm() < 0.1 * exact.norm()


def test_an_adapter_on_8_bits_adds_what_it_adds_to_the_original(folder: Path, tmp_path: Path) -> None:
    adapter = build_adapter(folder, tmp_path / "adapter", seed=5)
    whole, small = loaded(folder, "none"), loaded(folder)
    for model in (whole, small):
        adapters = Adapters(model.model)
        adapters.use([(adapters.add(adapter), len(IDS))])
    exact = logits(whole, IDS)
    assert (logits(small, IDS) - exact).norm() < 0.05 * exact.norm()


def test_what_cannot_be_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelUnusable, match="no quantisation 'int2'"):
        loaded(folder, "int2")
    with pytest.raises(ModelUnusable, match="int4 needs a GPU"):
        loaded(folder, "int4")
    copy = shutil.copytree(folder, tmp_path / "copy")
    raw = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(raw | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ModelUnusable, match="quantised already"):
        loaded(copy)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ModelUnusable, match=r"pip install 'fleetchat\[quantization\]'"):
        loaded(folder)


def test_a_gpu_takes_4_bits_in_the_form_of_its_kernel() -> None:
    check("int4", CUDA)
    made = config("int4", CUDA)
    assert made is not None
    assert made.quant_type.int4_packing_format == "tile_packed_to_4d"
    assert config("none", CPU) is None
