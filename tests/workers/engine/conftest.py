"""One tiny model for all tests, and engines on it that are closed again."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from broker.messages import ChatRequest, Message, Sampling
from broker.sources import ModelSource
from tests.tiny_model import build
from workers.engine import EngineOptions
from workers.engine.torch_engine import TorchEngine, open_engine

Open = Callable[..., Awaitable[TorchEngine]]


torch.set_num_threads(1)  # the models are tiny, and threads that wait for each other are slow on a busy machine


def request(text: str, sampling: Sampling, **more: Any) -> ChatRequest:
    """One user message for the model `m`."""
    return ChatRequest(**{"model": "m", "messages": (Message("user", text),), "sampling": sampling} | more)


def options(folder: Path, **more: Any) -> EngineOptions:
    """The model in `folder` as `m`, on the CPU."""
    return EngineOptions((ModelSource("m", str(folder)),), **{"device": "cpu"} | more)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model."""
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def bert(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bare BERT, small, and the tokenizer of the tiny model, which has a token for each byte."""
    made = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=512, max_position_embeddings=64, **sizes), add_pooling_layer=False)
    model.save_pretrained(made)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, made)
    return made


@pytest.fixture
async def opened(folder: Path) -> AsyncIterator[Open]:
    """Opens engines; what it opened is closed after the test."""
    async with AsyncExitStack() as stack:

        async def open_(source: Path = folder, **more: Any) -> TorchEngine:
            engine = await open_engine(options(source, **{"slots": 8, "cache_mb": 4} | more), lambda percent: None)
            stack.push_async_callback(engine.close)
            return engine

        yield open_


@pytest.fixture
async def engine(opened: Open) -> TorchEngine:
    """An engine with eight slots."""
    return await opened()
