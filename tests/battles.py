"""Made votes: FastChat's log of an arena, as section 8 of its format has it."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODELS = ("vicuna-13b", "koala-13b", "alpaca-13b", "llama-13b")
TYPES = ("leftvote", "rightvote", "tievote", "bothbad_vote")
PROMPTS = (
    "Write a function in Python that reverses a list, please.",
    "What is the integral of x^2 from 0 to 1? Show each step.",
    "請問台灣最高的山是哪一座？它有多高？",
    'How do I bake bread?\n\nI have flour, water 🍞 and "yeast".',
)


def state(model: str, conversation: str, turns: Sequence[tuple[str, str]], **more: Any) -> dict[str, Any]:
    """One side of a battle, as FastChat writes it."""
    messages = [[role, text] for turn in turns for role, text in zip(("Human", "Assistant"), turn, strict=True)]
    return {
        "template_name": "vicuna_v1.1",
        "system_message": "A chat between a curious user and an artificial intelligence assistant.",
        "roles": ["Human", "Assistant"],
        "messages": messages,
        "offset": 0,
        "conv_id": conversation,
        "model_name": model,
    } | more


def vote(number: int, **more: Any) -> dict[str, Any]:
    """A vote on two models, the same one for the same number."""
    dice = random.Random(number)
    a, b = dice.sample(MODELS, 2)
    turns = [dice.choice(PROMPTS) for _ in range(dice.choice((1, 1, 2, 3)))]
    states = [
        state(
            model,
            f"{number:031x}{side}",
            [(text, f"# Answer {side}\n\n- **{dice.random()}** of {text}") for text in turns],
        )
        for side, model in zip("ab", (a, b), strict=True)
    ]
    blind = dice.random() < 0.7
    return {
        "tstamp": round(1_680_000_000 + 37.0101 * number, 4),
        "type": dice.choice(TYPES),
        "models": ["", ""] if blind else [a, b],
        "states": states,
        "ip": f"203.0.113.{dice.randrange(40)}",
    } | more


def chat(number: int) -> dict[str, Any]:
    """A turn of one chat, of which such a log has many more."""
    return {
        "tstamp": 1_680_000_000.5 + number,
        "type": "chat",
        "model": MODELS[0],
        "gen_params": {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 1024},
        "start": 1.5,
        "finish": 2.5,
        "state": state(MODELS[0], f"{number:032x}", [("hi", "hello")]),
        "ip": "203.0.113.1",
    }


def log(file: Path, records: Sequence[dict[str, Any] | str]) -> Path:
    """A file with a record a line; text is written as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
