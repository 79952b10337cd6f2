"""Adapters written by peft, several in one step, against peft's own forward pass and merged weights."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from broker.errors import ModelUnusable
from tests.tiny_model import build_adapter
from workers.engine.adapters import CONFIG, WEIGHTS, Adapters, base_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own

PROMPT = list(range(10, 30))
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="session")
def first(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter(folder, tmp_path_factory.mktemp("first"), seed=1)


@pytest.fixture(scope="session")
def second(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of other ranks, on other layers."""
    more: dict[str, Any] = {"target_modules": [*LINEAR], "use_rslora": True, "layers_to_transform": [1]}
    patterns = {"rank_pattern": {"k_proj": 2, "1.mlp.*": 6}, "alpha_pattern": {"self_attn.o_proj": 3}}
    return build_adapter(folder, tmp_path_factory.mktemp("second"), seed=2, **more, **patterns)


@pytest.fixture
def base(folder: Path) -> PreTrainedModel:
    return load(folder)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).train(False)


def logits(model: Any, ids: Sequence[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def packed(model: Any, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Many requests side by side in one row, none of which sees another; shape (tokens, vocabulary)."""
    lengths = torch.tensor([len(ids) for ids in prompts])
    owner = torch.arange(len(prompts)).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(len(ids)) for ids in prompts])
    sees = (owner[:, None] == owner) & (positions[:, None] >= positions)
    mask = torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.float32).min)
    ids = torch.tensor([[i for prompt in prompts for i in prompt]])
    with torch.inference_mode():
        return model(ids, position_ids=positions[None], attention_mask=mask[None, None]).logits[0]


def assert_like_peft(folder: Path, adapter: Path, got: Tensor, ids: Sequence[int] = PROMPT) -> None:
    peft: Any = PeftModel.from_pretrained(load(folder), str(adapter))
    assert torch.allclose(got, logits(peft, ids), atol=1e-5)
    assert torch.allclose(got, logits(peft.merge_and_unload(), ids), atol=1e-5)
    assert not torch.allclose(got, logits(load(folder), ids), atol=0.1)


def test_an_adapter_alone_is_as_in_peft(folder: Path, base: PreTrainedModel, first: Path, second: Path) -> None:
    adapters = Adapters(base)
    for number, adapter in enumerate((first, second), 1):
        assert adapters.add(adapter) == number
        adapters.use([(number, len(PROMPT))])
        assert_like_peft(folder, adapter, logits(base, PROMPT))


def test_base_and_adapters_in_one_step_are_each_as_alone(base: PreTrainedModel, first: Path, second: Path) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = [(1, 7), (0, 5), (2, 1), (1, 1), (2, 30), (0, 1), (1, 2)]  # adapter, tokens
    prompts = [torch.randint(3, 300, (tokens,), generator=random).tolist() for _, tokens in shapes]
    plain = [logits(base, ids) for ids in prompts]
    adapters = Adapters(base)
    adapters.add(first)
    adapters.add(second)
    alone = []
    for (number, tokens), ids in zip(shapes, prompts, strict=True):
        adapters.use([(number, tokens)])
        alone.append(logits(base, ids))
    for (number, _), got, without in zip(shapes, alone, plain, strict=True):
        assert got.equal(without) == (number == 0)

    def assert_mixed(order: Sequence[int]) -> None:
        adapters.use([shapes[i] for i in order])
        mixed = packed(base, [prompts[i] for i in order])
        assert torch.allclose(mixed, torch.cat([alone[i] for i in order]), atol=1e-4)

    assert_mixed(range(7))
    assert_mixed([6, 0, 3])  # one adapter only
    assert_mixed([5, 4])
    assert_mixed([1, 5])  # the base only
    assert_mixed([3, 2, 1, 0])


def test_generate_goes_on_working(folder: Path, base: PreTrainedModel, first: Path) -> None:
    adapters = Adapters(base)
    adapters.add(first)
    prompt = {"input_ids": torch.tensor([PROMPT]), "attention_mask": torch.ones(1, len(PROMPT))}
    greedy: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False}
    model: Any = base
    plain = model.generate(**prompt, **greedy)
    assert plain.equal(load(folder).generate(**prompt, **greedy))
    adapters.use([(1, len(PROMPT))])
    adapted = model.generate(**prompt, **greedy)
    peft: Any = PeftModel.from_pretrained(load(folder), str(first))
    assert adapted.equal(peft.generate(**prompt, **greedy))
    assert not adapted.equal(plain)


def test_layers_that_are_stored_the_other_way_round(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, initializer_range=0.2, bos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    more: dict[str, Any] = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    adapter = build_adapter(tmp_path / "gpt2", tmp_path / "adapter", seed=3, **more)
    base = load(tmp_path / "gpt2")
    adapters = Adapters(base)
    adapters.use([(adapters.add(adapter), len(PROMPT))])
    assert_like_peft(tmp_path / "gpt2", adapter, logits(base, PROMPT))


def test_weights_take_the_type_of_the_model(folder: Path, base: PreTrainedModel, first: Path) -> None:
    half = base.to(torch.bfloat16)
    adapters = Adapters(half)
    adapters.use([(adapters.add(first), len(PROMPT))])
    peft: Any = PeftModel.from_pretrained(load(folder), str(first))
    got, exact = logits(half, PROMPT), logits(peft, PROMPT)
    assert got.dtype == torch.bfloat16
    assert (got - exact).norm() < 0.05 * exact.norm()


def test_the_base_is_named(folder: Path, first: Path, tmp_path: Path) -> None:
    assert base_of(first) == str(folder)
    with pytest.raises(ModelUnusable, match="is not an adapter"):
        base_of(tmp_path)
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(ModelUnusable, match="does not say which model"):
        base_of(tmp_path)


def configure(**changes: object) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        (copy / CONFIG).write_text(json.dumps(json.loads((copy / CONFIG).read_text()) | changes))

    return change


def rename(old: str, new: str) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        tensors = {name.replace(old, new): tensor for name, tensor in load_file(copy / WEIGHTS).items()}
        save_file(tensors, copy / WEIGHTS)

    return change


def to_pickle(copy: Path) -> None:
    torch.save(load_file(copy / WEIGHTS), copy / "adapter_model.bin")
    (copy / WEIGHTS).unlink()


def cut_short(copy: Path) -> None:
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-100])


def lose_a_half(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    del tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"]
    save_file(tensors, copy / WEIGHTS)


BROKEN: dict[str, Callable[[Path], Any]] = {
    "has no adapter_config.json": lambda copy: (copy / CONFIG).unlink(),
    "cannot be read": lambda copy: (copy / CONFIG).write_text("{"),
    "does not hold a JSON object": lambda copy: (copy / CONFIG).write_text("[]"),
    "kind IA3": configure(peft_type="IA3"),
    "uses use_dora": configure(use_dora=True),
    "uses bias": configure(bias="all"),
    "uses modules_to_save": configure(modules_to_save=["lm_head"]),
    "uses init_lora_weights=pissa_niter_4": configure(init_lora_weights="pissa_niter_4"),
    "no usable rank or alpha": configure(alpha_pattern={"[": 3}),
    "no usable rank or alpha for model.layers": configure(r=None),
    "has lora_A of shape (4, 128) for model.layers.0.mlp.down_proj": configure(
        rank_pattern={".*mlp.*": 8, "q_proj": 4}
    ),
    "where this model and its adapter_config.json need (4, 64)": rename("down_proj", "up_proj"),
    "is not complete: model.layers.1.mlp.down_proj has no lora_B": lose_a_half,
    "this one has no layer model.layers.0.mlp.sideways_proj": rename("down_proj", "sideways_proj"),
    "changes model.norm, a layer that cannot": rename("layers.0.mlp.down_proj", "norm"),
    "changes lm_head, a layer that cannot": rename("model.layers.0.mlp.down_proj", "lm_head"),
    "more than LoRA on linear layers": rename("lora_B.weight", "lora_B.bias"),
    "is a pickle": to_pickle,
    "has no adapter_model.safetensors.": lambda copy: (copy / WEIGHTS).unlink(),
    "has no tensors": lambda copy: save_file({}, copy / WEIGHTS),
    "damaged or cut short": cut_short,
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_a_broken_adapter_is_named_in_one_sentence(
    base: PreTrainedModel, first: Path, tmp_path: Path, sentence: str
) -> None:
    for file in (CONFIG, WEIGHTS):
        (tmp_path / file).write_bytes((first / file).read_bytes())
    BROKEN[sentence](tmp_path)
    before = logits(base, PROMPT)
    adapters = Adapters(base)
    with pytest.raises(ModelUnusable) as caught:
        adapters.add(tmp_path)
    assert sentence in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    adapters.use([(1, len(PROMPT))])
    assert logits(base, PROMPT).equal(before)


def test_an_adapter_of_peft_with_more_than_lora_is_refused(folder: Path, base: PreTrainedModel, tmp_path: Path) -> None:
    more: dict[str, dict[str, Any]] = {
        "use_dora": {"use_dora": True},
        "modules_to_save": {"modules_to_save": ["lm_head"]},
        "trainable_token_indices": {"trainable_token_indices": [1, 2]},
        "lora_embedding": {"target_modules": ["embed_tokens"]},
        "lm_head": {"target_modules": ["lm_head"]},
    }
    for name, overrides in more.items():
        with pytest.raises(ModelUnusable, match=name):
            Adapters(base).add(build_adapter(folder, tmp_path / name, seed=4, **overrides))
