"""The engine for vectors: how a folder says what it wants, what is refused, and what is computed together."""

import asyncio
import json
import shutil
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertModel, Qwen3Config, Qwen3ForCausalLM

from broker.errors import BadRequest, ModelUnusable, PromptTooLong, StepFailed
from broker.messages import ChatRequest, EmbedRequest, Message
from broker.sources import ModelSource
from workers.engine import EngineOptions, encoder, open_engine
from workers.engine.encoder import EncoderEngine, Input, Recipe

TRANSFORMER = {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
Write = Callable[..., Path]


@pytest.fixture
def write(bert: Path, tmp_path: Path) -> Write:
    """The same with sentence-transformers' files."""

    def made(pooling: object = None, modules: Sequence[object] = (TRANSFORMER, POOLING), **more: object) -> Path:
        for file in bert.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "sentence_bert_config.json").write_text(json.dumps(more))
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
        return tmp_path

    return made


async def start(folder: Path, **options: object) -> EncoderEngine:
    settings = {"device": "cpu"} | options
    engine = await open_engine(EngineOptions((ModelSource("e", str(folder)),), **settings), lambda percent: None)  # type: ignore[arg-type]
    assert isinstance(engine, EncoderEngine)
    return engine


async def vectors(engine: EncoderEngine, *inputs: str | tuple[int, ...], said: int = 0, **more: object) -> np.ndarray:
    async with engine.embed(EmbedRequest("e", inputs, **more), said) as pieces:  # type: ignore[arg-type]
        found = [one async for piece in pieces for one in (piece.data or {}).get("vectors", ())]
    return np.array([np.frombuffer(b64decode(one), "<f4") for one in found])


@pytest.fixture
async def engine(write: Write) -> AsyncIterator[EncoderEngine]:
    opened = await start(write(max_seq_length=32))
    yield opened
    await opened.close()
    assert not opened.alive


def states(folder: Path, ids: Sequence[int]) -> np.ndarray:
    with torch.no_grad():
        return BertModel.from_pretrained(folder)(torch.tensor([ids])).last_hidden_state[0].numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", [{"pooling_mode_cls_token": True}, {"pooling_mode": "cls"}])
async def test_the_first_token_stands_for_all_where_the_folder_says_so(write, mode):
    folder = write(mode)
    engine = await start(folder)
    expected = states(folder, (5, 6, 7))[0]
    (found, _) = await vectors(engine, (5, 6, 7), (9, 9, 9, 9, 9, 9))
    assert np.abs(found - expected / np.linalg.norm(expected)).max() < 1e-5
    await engine.close()


@pytest.mark.parametrize(
    ("mode", "pooled"),
    [
        ("pooling_mode_max_tokens", lambda found: found.max(0)),
        ("pooling_mode_mean_sqrt_len_tokens", lambda found: found.sum(0) / len(found) ** 0.5),
        ("pooling_mode_weightedmean_tokens", lambda found: np.average(found, 0, range(1, len(found) + 1))),
        ("pooling_mode_lasttoken", lambda found: found[-1]),
    ],
)
async def test_every_pooling_is_as_it_is_defined(write, mode, pooled):
    folder = write({mode: True})
    engine = await start(folder)
    expected = pooled(states(folder, (5, 6, 7)))
    (found, _) = await vectors(engine, (5, 6, 7), (9,) * 6)
    assert np.abs(found - expected / np.linalg.norm(expected)).max() < 1e-5
    await engine.close()


async def test_a_decoder_gives_its_last_token_beside_any_other_input(write):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = Qwen3Config(vocab_size=512, num_key_value_heads=1, head_dim=8, **sizes)  # type: ignore[arg-type]
    made = write({"pooling_mode_lasttoken": True, "include_prompt": True})
    (made / "model.safetensors").unlink()
    decoder = Qwen3ForCausalLM(config).train(False)
    decoder.save_pretrained(made)
    inputs = [tuple(range(5, 5 + n)) for n in (3, 9, 1)]
    engine = await start(made)
    found = await vectors(engine, *inputs)
    await engine.close()
    padded = torch.tensor([[*[0] * (9 - len(one)), *one] for one in inputs])  # as Qwen3-Embedding's own example does
    with torch.no_grad():
        expected = decoder.model(padded, attention_mask=(padded > 0).long()).last_hidden_state[:, -1]
    assert np.abs(found - torch.nn.functional.normalize(expected, dim=1).numpy()).max() < 1e-5


async def test_a_vector_does_not_depend_on_what_is_computed_beside_it(engine, bert):
    inputs = [tuple(range(1, 2 + n)) for n in (20, 1, 30, 7)]
    found = await vectors(engine, *inputs)
    for ids, vector in zip(inputs, found, strict=True):
        mean = states(bert, ids).mean(0)
        assert np.abs(vector - mean / np.linalg.norm(mean)).max() < 1e-5


async def test_another_worker_goes_on_where_the_first_one_stopped(engine, monkeypatch):
    monkeypatch.setattr(encoder, "PIECE_BYTES", 2 * 16 * 4)
    inputs = [(i,) for i in range(1, 6)]
    whole = await vectors(engine, *inputs)
    rest = await vectors(engine, *inputs, said=1)
    assert np.abs(whole[2:] - rest).max() < 1e-5
    assert len(await vectors(engine, *inputs, said=3)) == 0


async def test_what_does_not_fit_is_refused_and_named(engine):
    for error, inputs, more, what in [
        (PromptTooLong, ((1,), (1,) * 33), {}, "Input 1 has 33 tokens, and e takes 32"),
        (BadRequest, ((512,),), {}, "Input 0 is no list"),
        (BadRequest, ((1,),), {"dimensions": 17}, "16 dimensions"),
    ]:
        with pytest.raises(error, match=what):
            await vectors(engine, *inputs, **more)
    with pytest.raises(BadRequest, match="e gives embeddings"):
        async with engine.generate(ChatRequest("e", (Message("user", "hi"),))):
            pass
    assert not engine.busy


async def test_a_request_that_is_left_is_not_computed(engine):
    async with engine.embed(EmbedRequest("e", ((1,),) * 2000)) as pieces:
        assert engine.busy
        assert pieces.prompt_tokens == 2000
    steps = engine.steps
    await vectors(engine, (1, 2))
    assert engine.steps - steps <= 2
    assert not engine.busy


async def test_a_batch_that_fails_ends_its_requests_and_no_others(engine, monkeypatch):
    forward = BertModel.forward

    def fails(self: BertModel, input_ids: torch.Tensor, **more: object) -> object:
        if 13 in input_ids:
            raise RuntimeError("13")
        return forward(self, input_ids, **more)

    monkeypatch.setattr(BertModel, "forward", fails)
    with pytest.raises(StepFailed):
        await vectors(engine, (13,))
    assert len(await asyncio.wait_for(vectors(engine, (12,)), 5)) == 1


def test_batches_hold_inputs_of_similar_length():
    inputs = [Input(range(n), None) for n in (9, 1, 8, 2, 200)]  # type: ignore[arg-type]
    assert [[len(one.ids) for one in batch] for batch in encoder.batches(inputs, 20)] == [[1, 2], [8, 9], [200]]


def test_without_sentence_transformers_files_it_is_the_mean(bert):
    assert encoder.read_recipe(bert) == Recipe("mean", None, False)


async def test_the_role_decides_where_the_files_do_not(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "named")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnusable, match="FLEETCHAT_ROLE=embed"):
        await start(folder)
    engine = await start(folder, role="embed")
    assert engine.cards[0].context == 64
    await engine.close()
    with pytest.raises(ModelUnusable, match="cannot give embeddings"):
        await open_engine(EngineOptions((ModelSource("echo", "echo"),), role="embed"), lambda percent: None)


@pytest.mark.parametrize(
    ("pooling", "modules", "what"),
    [
        ({"pooling_mode_first_verb": True}, (TRANSFORMER, POOLING), "pooling_mode_first_verb"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, (TRANSFORMER, POOLING), "mean and cls"),
        ({}, (TRANSFORMER, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}), "Dense"),
        ({}, ("nonsense",), "cannot be read"),
        ([], (TRANSFORMER, POOLING), None),
    ],
)
async def test_what_a_folder_wants_and_is_not_known_is_named(write, pooling, modules, what):
    folder = write(pooling, modules)
    if what is None:
        assert encoder.read_recipe(folder).pooling == "mean"
    else:
        with pytest.raises(ModelUnusable, match=what):
            await start(folder)


async def test_neither_adapters_nor_quantisation(bert):
    with pytest.raises(ModelUnusable, match="no adapters"):
        await start(bert, role="embed", quantization="int8")
