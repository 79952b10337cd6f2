"""pocket as it lies in the repository: its files, its tokenizer, and what it answers."""

import itertools
import random

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig

from workers.pocket import corpus, judge

LEAST_SHARE = 0.6  # a few points under the measured share
DIALOGUES_PER_STEP = 25  # more than training sees


@pytest.fixture(scope="module")
def pocket():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield judge.load()
    torch.set_num_threads(threads)


@pytest.mark.timeout(120)
def test_heldout_questions_share_no_four_words_with_training_text():
    from workers.pocket.train import SEED, STEPS

    held = corpus.heldout_runs()
    some = itertools.islice(corpus.dialogues(SEED), STEPS * DIALOGUES_PER_STEP)
    texts = {text for dialogue in some for _, text in dialogue}
    assert len(texts) > 50_000
    for text in texts:
        shared = held & (corpus.runs(text) | corpus.runs(text, masked=True))
        assert not shared, text


def test_no_template_makes_a_heldout_run():
    """Chance is not what keeps them apart: the templates themselves, without typing errors, share nothing."""
    rng = random.Random(0)
    held = corpus.heldout_runs()
    for language in corpus.LANGUAGES:
        say = corpus.phrases(language)
        for turns in say.sections.values():
            for template in (template for turn in turns for template in (*turn.asks, *turn.answers)):
                for _ in range(40):
                    text = say.fill(rng, template)
                    assert held.isdisjoint(corpus.runs(text) | corpus.runs(text, masked=True)), text


def test_runs_count_a_chinese_character_as_a_word():
    assert corpus.runs("用 Redis 好嗎") == {("用", "redis", "好", "嗎")}
    assert corpus.runs("What is 7 plus 8?", masked=True) == {("what", "is", "#", "plus"), ("is", "#", "plus", "#")}
    assert corpus.runs("十五加三是", masked=True) == {("#", "加", "#", "是")}


def test_same_seed_gives_same_dialogues():
    first, again = (list(itertools.islice(corpus.dialogues(3), 50)) for _ in range(2))
    assert first == again


def test_sixty_questions_in_both_languages():
    questions = judge.questions()
    assert len(questions) == 60
    assert sum(question.lang == "zh" for question in questions) == 30
    assert {question.topic for question in questions if question.lang == "en"} == {
        question.topic for question in questions if question.lang == "zh"
    }


def test_judge_reads_the_rules():
    judged = judge.Question(topic="sums", lang="en", turns=[""], number=5)
    assert judged.judge(["2 + 3 = 5."])
    assert not judged.judge(["2 + 3 = 6."])
    assert not judged.judge(["2 + 3 = 5。是"])
    unknown = judge.Question(topic="out of scope", lang="zh", turns=[""], unknown=True)
    assert unknown.judge(["我不知道。"])
    assert not unknown.judge(["八千公尺。"])
    assert not judge.Question(topic="jokes", lang="en", turns=["", ""], differs=True).judge(["Ha.", "Ha."])


def test_weights_are_small():
    path = judge.HERE / "model.safetensors"
    assert path.stat().st_size <= 20_000_000
    with safe_open(path, "pt") as tensors:
        count = sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118
    assert 2_000_000 <= count <= 5_000_000
    assert (judge.HERE / "loss.png").stat().st_size < 60_000


def test_it_is_a_plain_llama(pocket):
    model, tokenizer = pocket
    config = AutoConfig.from_pretrained(judge.HERE, local_files_only=True)
    assert config.architectures == ["LlamaForCausalLM"]
    assert len(tokenizer) == config.vocab_size
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token is not None
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert 2_000_000 <= sum(weight.numel() for weight in model.parameters()) <= 5_000_000


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!  Two  spaces\n\n\tand a tab",
        "你好,世界。「怎麼啟動?」",
        "👩‍👩‍👧 🙂 é ß ñ Привет こんにちは 한국어",
        "7+8=15, 127.0.0.1:8080",
        "I typed <|im_end|> and <|im_start|>system",
        " 開頭有空白",
        "",
    ],
)
def test_tokenizer_gives_every_text_back(pocket, text):
    _, tokenizer = pocket
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_template_writes_chatml(pocket):
    _, tokenizer = pocket
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Bye"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_training_sees_what_the_template_writes(pocket):
    from workers.pocket.train import encode

    _, tokenizer = pocket
    for dialogue in itertools.islice(corpus.dialogues(1), 30):
        messages = [{"role": role, "content": text.strip()} for role, text in dialogue]
        ids, learned = encode(tokenizer, [(role, text.strip()) for role, text in dialogue])
        assert tokenizer.apply_chat_template(messages)["input_ids"][:1024] == ids
        assert tokenizer.decode([token for token, wanted in zip(ids, learned, strict=True) if wanted][:1]) != ""


@pytest.mark.timeout(120)
def test_it_answers_most_heldout_questions(pocket):
    questions = judge.questions()
    right = sum(question.judge(judge.chat(*pocket, question.turns)) for question in questions)
    assert right / len(questions) >= LEAST_SHARE, right
