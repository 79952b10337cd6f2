"""A checkpoint loads, or one sentence says why it does not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from broker.errors import ModelUnusable
from tests.tiny_model import CONTEXT, END
from workers.engine.model import load, pick_device

WEIGHTS = "model.safetensors"


def test_a_model_loads(folder: Path) -> None:
    percents: list[int] = []
    loaded = load(str(folder), "auto" if not torch.cuda.is_available() else "cpu", "auto", percents.append)
    assert (loaded.context, loaded.end_ids) == (CONTEXT, {END})
    assert loaded.dtype == loaded.model.dtype == torch.float32
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    assert len(percents) > 5


def test_every_end_token_is_known(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert load(str(copy), "cpu", "auto", lambda percent: None).end_ids == {7, 9, END}


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
    loaded = load(str(copy), "cpu", "bfloat16", lambda percent: None)
    assert loaded.dtype == torch.bfloat16
    embedding = loaded.model.get_input_embeddings().weight
    assert embedding.equal(tensors["model.embed_tokens.weight"].to(torch.bfloat16))
    (copy / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in why(copy)


def why(source: Path | str, device: str = "cpu", dtype: str = "auto") -> str:
    with pytest.raises(ModelUnusable) as caught:
        load(str(source), device, dtype, lambda percent: None)
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
    "has no tokenizer (": drop("tokenizer.json", "tokenizer_config.json"),
    "no tokenizer that can be used": lambda copy: (copy / "tokenizer.json").write_text("{"),
    "no chat template": drop("chat_template.jinja"),
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
