"""lm-eval, unchanged, as a command: through a fleet it finds what its own `hf` backend finds with the same weights.

A task with MMLU's own template on questions in the format of its files, five answered ones before each, and a task whose
answers are written greedily until a stop string. Compared question by question.
"""

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp.test_utils import TestServer

from broker.config import Config
from broker.connection import Broker
from tests.tiny_model import build
from webapp.app import create_app

LM_EVAL = Path(find_spec("lm_eval").origin).parent  # type: ignore[union-attr,arg-type]
CONTEXT = 1024
SPLITS = {"dev": range(5), "test": range(5, 45)}
THINGS = ("a fox", "the south", "天气", "世界", "über den Wolken", "😀👍🏽", "a lazy dog", "e\u0301tude")
TASKS = {
    "choosing": {"include": str(LM_EVAL / "tasks/mmlu/default/_default_template_yaml")},
    "writing": {
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n", "e", "界"], "do_sample": False, "max_gen_toks": 24},
        "metric_list": [{"metric": "exact_match"}],
    },
}

Found = dict[str, Any]


def question(i: int) -> dict[str, Any]:
    """As a line of MMLU's files has it."""
    choices = [f"{THINGS[(i + k) % 8]} {(i * 7 + k) % 10}" for k in range(4)]
    text = f"Which of these is like {THINGS[i % 7]} and {THINGS[(i * 3 + 1) % 8]}, 第{i}個?"
    return {"question": text, "subject": "anything", "choices": choices, "answer": i * 5 % 4}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder for `--include_path`."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    files = {split: str(folder / f"{split}.jsonl") for split in SPLITS}
    for split, numbers in SPLITS.items():
        Path(files[split]).write_text("".join(json.dumps(question(i), ensure_ascii=False) + "\n" for i in numbers))
    for name, task in TASKS.items():
        local = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
        (folder / f"{name}.yaml").write_text(json.dumps(task | local))
    return folder


@pytest.fixture
async def site(broker: Broker, config: Config) -> AsyncIterator[TestServer]:
    """A web app that takes prompts as large as one does by itself."""
    server = TestServer(create_app(config))
    await server.start_server()
    yield server
    await server.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For the worker: threads of one step wait for each other, and here other processes have the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def documented(**changes: object) -> str:
    """The README's command, with some of its arguments changed."""
    (command,) = re.findall("^lm_eval .*", (Path(__file__).parents[2] / "README.md").read_text(), re.M)
    for name, value in changes.items():
        command, count = re.subn(rf"\b{name}=[^, ]*", f"{name}={value}", command)
        assert count == 1
    return str(command)


async def lm_eval(tasks: Path, out: Path, command: str) -> Found:
    """What the command finds in these tasks: `results` by task, and each task's samples in order."""
    command = command.replace(" mmlu ", f" {','.join(TASKS)} ")
    command += f" --include_path {tasks} --output_path {out} --log_samples"
    offline = {"HF_HOME": str(out), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command.split(), env=os.environ | offline, stdout=PIPE, stderr=STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert b"API request failed" not in said
    return read(out)


def read(out: Path) -> Found:
    """What lies in its output folder."""
    (results,) = out.rglob("results_*.json")
    found = {"results": json.loads(results.read_text())["results"]}
    for task in TASKS:
        (samples,) = out.rglob(f"samples_{task}_*.jsonl")
        found[task] = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    return found


def scores(sample: dict[str, Any]) -> list[float]:
    """Log-likelihoods of the four choices."""
    return [float(score) for score, _ in sample["filtered_resps"]]


def pick(sample: dict[str, Any]) -> int:
    """The choice that is found the likeliest."""
    return max(range(4), key=scores(sample).__getitem__)


@pytest.mark.timeout(300)
async def test_mmlu_by_the_fleet_is_mmlu_by_the_weights(site, worker_in, one_thread, tasks, tmp_path):
    model = build(tmp_path / "model", max_position_embeddings=CONTEXT, initializer_range=0.3)  # its picks differ
    url = str(site.make_url("/v1/completions"))
    many = documented(model="tiny", base_url=url, max_length=CONTEXT, tokenizer=model)
    batches = many.partition(",tokenizer")[0] + " --batch_size 8"  # and its tokenizer is the fleet's
    weights = f"lm_eval --model hf --tasks mmlu --num_fewshot 5 --model_args pretrained={model},dtype=float32"
    async with worker_in(model=f"tiny={model}", cache_mb=16, device="cpu"):
        commands = {"hf": weights, "many": many, "batches": batches}
        truth, *fleets = await asyncio.gather(*(lm_eval(tasks, tmp_path / name, one) for name, one in commands.items()))
    assert len({pick(sample) for sample in truth["choosing"]}) > 2
    assert len({sample["filtered_resps"][0] for sample in truth["writing"]}) > 20
    for found in fleets:
        for ours, theirs in zip(found["choosing"], truth["choosing"], strict=True):
            assert ours["prompt_hash"] == theirs["prompt_hash"]
            assert scores(ours) == pytest.approx(scores(theirs), abs=1e-3)
            assert (pick(ours), ours["acc"]) == (pick(theirs), theirs["acc"])
        for ours, theirs in zip(found["writing"], truth["writing"], strict=True):
            assert ours["prompt_hash"] == theirs["prompt_hash"]
            assert ours["filtered_resps"] == theirs["filtered_resps"]
        assert found["results"] == truth["results"]
        assert found["results"]["choosing"]["sample_len"] == len(SPLITS["test"])
