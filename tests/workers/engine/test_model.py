"""A checkpoint loads, or one sentence says why it does not."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from broker.errors import ModelUnusable
from broker.sources import ModelSource
from tests.tiny_model import CHAT_TEMPLATE, CONTEXT, END
from workers.engine.model import Loaded, is_encoder, load, pick_device

WEIGHTS = "model.safetensors"


def loaded_from(folder: Path, dtype: str = "auto", quantized: str = "none", **said: Any) -> Loaded:
    return load(ModelSource("m", str(folder), **said), "cpu", dtype, quantized, lambda percent: None)


def test_a_model_loads(folder: Path) -> None:
    percents: list[int] = []
    device = "cpu" if torch.cuda.is_available() else "auto"
    loaded = load(ModelSource("m", str(folder)), device, "auto", "none", percents.append)
    assert (loaded.context, loaded.end_ids) == (CONTEXT, {END})
    assert loaded.dtype == loaded.model.dtype == torch.float32
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    assert len(percents) > 5


@pytest.mark.parametrize(
    ("kind", "named", "encodes"),
    [
        ("bert", ["BertModel"], True),
        ("xlm-roberta", ["XLMRobertaForMaskedLM"], True),
        ("qwen3", ["Qwen3Model"], True),
        ("qwen3", ["Qwen3ForCausalLM"], False),
        ("gpt2", ["GPT2LMHeadModel"], False),
        ("bert", ["BertForSequenceClassification"], False),
        ("clip", ["CLIPModel"], False),
        ("qwen3", None, False),
        (["bert"], ["BertModel"], False),
    ],
)
def test_a_model_without_a_head_is_for_vectors(tmp_path: Path, kind: Any, named: Any, encodes: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "architectures": named}))
    assert is_encoder(tmp_path) == encodes
    (tmp_path / "modules.json").touch()
    assert is_encoder(tmp_path)


def test_every_end_token_is_known(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert loaded_from(copy).end_ids == {7, 9, END}


def test_weights_are_cast_and_may_be_in_several_files(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / WEIGHTS)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, copy / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / WEIGHTS).unlink()
    loaded = loaded_from(copy, "bfloat16")
    assert loaded.dtype == torch.bfloat16
    embedding = loaded.model.get_input_embeddings().weight
    assert embedding.equal(tensors["model.embed_tokens.weight"].to(torch.bfloat16))
    (copy / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in why(copy)


def why(source: Path | str, device: str = "cpu", dtype: str = "auto", quantized: str = "none", **said: Any) -> str:
    with pytest.raises(ModelUnusable) as caught:
        load(ModelSource("m", str(source), **said), device, dtype, quantized, lambda percent: None)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def configure(**changes: object) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        config = json.loads((copy / "config.json").read_text()) | changes
        (copy / "config.json").write_text(json.dumps(config))

    return change


def drop(*names: str) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        for name in names:
            (copy / name).unlink()

    return change


def to_pickle(copy: Path) -> None:
    torch.save(load_file(copy / WEIGHTS), copy / "pytorch_model.bin")
    (copy / WEIGHTS).unlink()


def cut_short(copy: Path) -> None:
    data = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(data[: len(data) // 2])


def scribble(copy: Path) -> None:
    (copy / WEIGHTS).write_bytes(b"\xff" * 1000)


def lose_a_tensor(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / WEIGHTS, {"format": "pt"})


def break_template(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{% for m in %}")


BROKEN = {
    "has no config.json": drop("config.json"),
    "config.json cannot be used": lambda copy: (copy / "config.json").write_text("{"),
    "config.json cannot": configure(model_type="telepathy"),
    "cannot": configure(hidden_size="wide"),
    "which is not a language model": configure(architectures=["LlamaForSequenceClassification"]),
    "holds vit, which is not": lambda copy: (copy / "config.json").write_text('{"model_type": "vit"}'),
    "pickle files only": to_pickle,
    "has no weights": drop(WEIGHTS),
    "damaged or cut short": cut_short,
    "damaged": scribble,
    "lack 1 of the model's tensors, model.layers.1.mlp.up_proj.weight": lose_a_tensor,
    "another shape than its config.json says": configure(intermediate_size=96),
    "way that transformers does not know ({})": configure(quantization_config={}),
    "way that transformers does not know ({'quant_method': 'guesswork'})": configure(
        quantization_config={"quant_method": "guesswork"}
    ),
    "pip install aqlm": configure(quantization_config={"quant_method": "aqlm"}),
    "has no tokenizer (": drop("tokenizer.json", "tokenizer_config.json"),
    "no tokenizer that can be used": lambda copy: (copy / "tokenizer.json").write_text("{"),
    "give its template as chat_template in FLEETCHAT_MODELS_FILE": drop("chat_template.jinja"),
    "chat template that does not work": break_template,
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_a_broken_folder_is_named_in_one_sentence(folder: Path, tmp_path: Path, sentence: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    BROKEN[sentence](copy)
    said = why(copy)
    assert sentence in said
    assert str(copy) in said


def test_a_source_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not exist" in why(tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert "is a file" in why(tmp_path / "file")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "nobody/nothing is neither a folder" in why("nobody/nothing")
    assert "neither a folder" in why("not a name!")


def test_devices_and_dtypes_that_are_not_there_are_named(folder: Path) -> None:
    assert "no device 'abacus'" in why(folder, device="abacus")
    assert "no device 'cuda:x'" in why(folder, device="cuda:x")
    absent = next(
        kind
        for kind in ("npu", "mps", "xpu", "cuda")
        if not getattr(torch, kind, None) or not getattr(torch, kind).is_available()
    )
    assert f"device {absent} was asked for" in why(folder, device=absent)
    assert "no dtype 'int3'" in why(folder, dtype="int3")
    assert pick_device("cpu").type == "cpu"


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "fleetchat_own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
OWN = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}


def test_code_of_the_checkpoint_runs_only_when_its_operator_asks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])  # transformers adds the cache
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{CODE}")
    configure(model_type="fleetchat_own", architectures=["OwnForCausalLM"], auto_map=OWN)(copy)
    assert "set trust_remote_code = true for this model in FLEETCHAT_MODELS_FILE" in why(copy)
    assert not (tmp_path / "ran").exists()
    assert type(loaded_from(copy, trust_remote_code=True).model).__name__ == "OwnForCausalLM"
    assert (tmp_path / "ran").exists()


def test_a_template_of_the_operator_takes_the_place_of_the_models_own(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "chat_template.jinja").unlink()
    file = tmp_path / "mine.jinja"
    assert "The chat template of m cannot be read" in why(copy, chat_template=str(file))
    file.write_text("{% for m in %}")
    assert f"{file} has a chat template that does not work" in why(copy, chat_template=str(file))
    file.write_text("{{ messages[0]['content'] }}!")
    for place in (copy, folder):
        tokenizer = loaded_from(place, chat_template=str(file)).tokenizer
        assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a!"
    assert loaded_from(folder).tokenizer.chat_template == CHAT_TEMPLATE


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_ = sum(tensor.nbytes for tensor in load_file(folder / WEIGHTS).values())
    monkeypatch.setattr("workers.engine.model.free_bytes", lambda device: bytes_ * 0.8)
    assert "GB for its weights, and of the free memory of cpu it may take" in why(folder, dtype="float32")
    assert loaded_from(folder).dtype == torch.bfloat16
    monkeypatch.setattr("workers.engine.model.free_bytes", lambda device: bytes_ * 0.4)
    assert "GB for its weights" in why(folder)
