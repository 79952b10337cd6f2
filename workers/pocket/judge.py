"""Asks pocket the held-out questions and judges its answers: `python -m workers.pocket.judge`.

In comes heldout.toml, which says what is right; out go the share by language and topic, the failures, and sample chats.
It uses plain transformers, greedy and in float32, so the result is the same every time on the same machine.
"""

import argparse
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

HERE = Path(__file__).parent
UNKNOWN = {"en": r"\bdon't know|do not know", "zh": "不知道|不清楚"}
CJK = re.compile(r"[\u3400-\u9fff]")
SAMPLES = (  # what people might well type first; in no way chosen after the answers
    ["Hello! Who are you?", "what is FleetChat?", "tell me more"],
    ["How do I start it?", "and in Chinese?"],
    ["What is 9 + 8?", "minus 5", "why?"],
    ["tell me a story about a robot", "another one"],
    ["Who is the king of Sweden?", "why not?"],
    ["I am bored", "a joke please", "thanks, bye"],
    ["你好", "FleetChat 可以拿來做什麼?", "多說一點"],
    ["怎麼加一台機器進來?", "用英文說"],
    ["七加六等於多少?", "再減 3"],
    ["講一個烏龜的故事", "謝謝", "台北明天會下雨嗎?"],
)


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out question and the rule that judges the answer; heldout.toml explains the fields."""

    topic: str
    lang: str
    turns: list[str]
    answer: str = ""
    all: tuple[str, ...] = ()
    any: tuple[str, ...] = ()
    none: tuple[str, ...] = ()
    number: int | None = None
    min_chars: int = 1
    differs: bool = False
    unknown: bool = False

    def judge(self, answers: list[str]) -> bool:
        """Whether the last of the answers, one for each turn, is right."""
        last = answers[-1]
        language = self.answer or self.lang

        def found(pattern: str) -> bool:
            return re.search(pattern, last, re.IGNORECASE) is not None

        numbers = re.findall(r"\d+", last)
        unsure = found(UNKNOWN[language])
        return (
            bool(CJK.search(last)) == (language == "zh")
            and (unsure if self.unknown else not unsure or bool(self.none))
            and all(map(found, self.all))
            and (not self.any or any(map(found, self.any)))
            and not any(map(found, self.none))
            and (self.number is None or numbers[-1:] == [str(self.number)])
            and len(last) >= self.min_chars
            and not (self.differs and last in answers[:-1])
        )


def questions() -> list[Question]:
    """All held-out questions, in the order of the file."""
    return [Question(**fields) for fields in tomllib.loads((HERE / "heldout.toml").read_text("utf-8"))["question"]]


def load(folder: Path = HERE) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 on the CPU, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def chat(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, turns: list[str]) -> list[str]:
    """The greedy answer to each of the turns, said one after the other."""
    messages: list[dict[str, str]] = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer.encode(text)])  # (1, time)
        tokens = model.generate(ids, do_sample=False, max_new_tokens=200)[0, ids.shape[1] :]  # type: ignore[operator]
        answer = str(tokenizer.decode(tokens, skip_special_tokens=True))
        messages.append({"role": "assistant", "content": answer.strip()})
    return [message["content"] for message in messages[1::2]]


def main() -> None:
    """Prints the share answered rightly, the failures unless told not to, and ten sample chats."""
    parser = argparse.ArgumentParser(prog="python -m workers.pocket.judge", description="Judges pocket.")
    parser.add_argument("--model", type=Path, default=HERE, help="folder of the model (default: %(default)s)")
    parser.add_argument("--share-only", action="store_true", help="no failures and no samples")
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model)
    asked, right, failures = Counter[str](), Counter[str](), []
    for question in questions():
        answers = chat(model, tokenizer, question.turns)
        good = question.judge(answers)
        for group in ("all", question.lang, f"{question.lang} {question.topic}"):
            asked[group] += 1
            right[group] += good
        if not good:
            failures.append((question.turns, answers))
    for group, count in asked.items():
        print(f"{group:20} {right[group]:2} of {count:2}  {right[group] / count:.0%}")
    if not arguments.share_only:
        for turns, answers in failures:
            _show("wrong", turns, answers)
        for turns in SAMPLES:
            _show("sample", turns, chat(model, tokenizer, turns))


def _show(title: str, turns: list[str], answers: list[str]) -> None:
    print(f"\n--- {title}")
    for turn, answer in zip(turns, answers, strict=True):
        print(f"> {turn}\n{answer}")


if __name__ == "__main__":
    main()
