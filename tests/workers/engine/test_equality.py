"""The engine's greedy answers are those of `generate`, token for token, in every family and in any company."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from broker.messages import Sampling
from tests.tiny_model import SAMPLE
from tests.workers.engine.conftest import Open, request
from tests.workers.engine.families import FAMILIES, build
from workers.engine.torch_engine import TorchEngine

TOKENS = 90
GREEDY = Sampling(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=0)
LENGTHS = [1, 1, 2, 3, 5, 8, 31, 32, 33, 63, 64, 65, 95, 100, 101, 130, 200, 511, 512, 513, 700, 1000, 1499, 1500]


@dataclass(frozen=True)
class Answered:
    """An answer: its tokens, and how likely the model found each."""

    ids: list[int]
    logprobs: list[float]

    def equals(self, other: "Answered") -> bool:
        near = all(abs(a - b) < 1e-3 for a, b in zip(self.logprobs, other.logprobs, strict=True))
        return self.ids == other.ids and near


class Family:
    """A model of a family, 40 prompts, and what `generate` answers to them."""

    def __init__(self, family: str, folder: Path) -> None:
        self.folder = build(family, folder)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.prompts = [self._prompt(n, seed) for seed, n in enumerate(LENGTHS)]
        head = self._prompt(300, 99)
        self.prompts += [head + self._prompt(n, n) for n in range(5, 85, 5)]  # 16 that begin alike
        self.expected = self._generate()

    def _prompt(self, tokens: int, seed: int) -> str:
        """A text of exactly so many tokens, drawn from words and signs of several scripts."""
        rng = random.Random(seed)
        parts = [*SAMPLE.split(), "a", "b", "c", "d", "e", "f", "g", "h"]
        text = ""
        while (missing := tokens - len(self._tokenizer.encode(text))) > 0:
            more = rng.choices(parts, k=missing // 12) if missing >= 12 else [rng.choice("abcdefgh")]
            text += "".join(f" {part}" if len(more) > 1 else part for part in more)
        while len(self._tokenizer.encode(text)) > tokens:
            text = text[:-1]
        return text

    def _generate(self) -> list[Answered]:
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        found = []
        for prompt in self.prompts:
            ids = self._tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
            new = out.sequences[0, ids.shape[1] :].tolist()
            rows = torch.cat(out.logits).log_softmax(-1)
            found.append(Answered(new, rows[range(len(new)), new].tolist()))
        return found


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


async def ask(engine: TorchEngine, prompt: str) -> Answered:
    async with engine.generate(request(prompt, GREEDY)) as answer:
        pieces = [piece async for piece in answer]
    ids = [i for piece in pieces for i in piece.token_ids]
    return Answered(ids, [p.logprob for piece in pieces for p in piece.logprobs or ()])


def check(found: Sequence[Answered], expected: Sequence[Answered]) -> None:
    wrong = [i for i, (one, other) in enumerate(zip(found, expected, strict=True)) if not one.equals(other)]
    assert not wrong


@pytest.mark.timeout(120)
def test_the_answers_would_show_a_difference(family: Family) -> None:
    lengths = [len(family._tokenizer.encode(prompt)) for prompt in family.prompts]
    assert len(lengths) == 40
    assert (min(lengths), max(lengths)) == (1, 1500)
    assert min(len(set(answer.ids)) for answer in family.expected) >= 50
    assert len({tuple(answer.ids) for answer in family.expected}) == len(set(family.prompts)) >= 39


@pytest.mark.timeout(120)
async def test_answers_are_those_of_generate_alone_and_in_any_company(family: Family, opened: Open) -> None:
    engine = await opened(family.folder, slots=7, cache_mb=64)
    some = range(0, 40, 4)
    check([await ask(engine, family.prompts[i]) for i in some], [family.expected[i] for i in some])
    for seed in (1, 2):  # the second time, prompts that have been read are still in the cache
        order = random.Random(seed).sample(range(40), 40)
        found = await asyncio.gather(*(ask(engine, family.prompts[i]) for i in order))
        check(found, [family.expected[i] for i in order])


@pytest.mark.timeout(120)
async def test_prompts_that_come_while_others_are_answered_are_read_in_parts(family: Family, opened: Open) -> None:
    engine = await opened(family.folder, slots=16, cache_mb=64)
    engine._batcher._pace.room = lambda running: running + 37 if running else 37  # type: ignore[method-assign]
    check(await asyncio.gather(*(ask(engine, prompt) for prompt in family.prompts)), family.expected)
