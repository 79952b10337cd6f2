"""Makes pocket again: `python -m workers.pocket.train` writes the tokenizer, the weights and the loss curve.

In come the dialogues of corpus.py, out go the files that `AutoModelForCausalLM.from_pretrained` and
`AutoTokenizer.from_pretrained` read; nothing else in FleetChat knows that this model is special. The seed, the number of
steps and the number of threads are fixed. The loss counts the answers only. Estimated 16 to 20
minutes on two free cores.
"""

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.pocket import corpus

HERE = Path(__file__).parent
SEED = 20
THREADS = 2
STEPS = 4000
BATCH_TOKENS = 2048  # with padding
POOL = 512  # dialogues that are sorted by length before they are cut into batches
CONTEXT = 1024  # longer dialogues are cut off
WARMUP = 100  # steps in which the learning rate rises
DECAY = 900  # last steps, in which it falls
PEAK_RATE = 2.2e-3
WEIGHT_DECAY = 0.1
VOCABULARY = 4096
TOKENIZER_DIALOGUES = 20_000

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] | trim }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
# A CJK character stands alone: merged ones would be the phrases of our templates, and new phrases would look strange.
# A number of up to two digits is one token, so that a sum is three tokens and not a calculation with digits.
PIECES = (
    r"[\u3400-\u9fff]|'(?:s|t|re|ve|m|ll|d)|[^\r\n\p{L}\p{N}\u3400-\u9fff]?[^\W\d_\u3400-\u9fff]+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
Example = tuple[list[int], list[bool]]  # token ids, and which of them are learned


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer for the dialogues; any text can be encoded, and comes back as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Each text once: what is said often needs no better tokens than what is said rarely.
    some = itertools.islice(corpus.dialogues(SEED), TOKENIZER_DIALOGUES)
    tokenizer.train_from_iterator(sorted({text for messages in some for _, text in messages}), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model, about three million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def encode(tokenizer: PreTrainedTokenizerFast, messages: list[corpus.Message]) -> Example:
    """The tokens of a dialogue as the chat template writes it; the answers and their ends are to be learned."""
    texts = [part for role, text in messages for part in (f"{START}{role}\n", f"{text}{END}", "\n")]
    roles = [role for role, _ in messages for _ in range(3)]
    ids: list[int] = []
    learned: list[bool] = []
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts)
    for place, (role, encoding) in enumerate(zip(roles, encodings, strict=True)):
        ids += encoding.ids
        learned += [role == "assistant" and place % 3 == 1] * len(encoding.ids)
    return ids[:CONTEXT], learned[:CONTEXT]


def batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of (ids, labels), both of shape (batch, time); labels are -100 where nothing is learned.

    Dialogues of like length share a batch, so that little is padded and none sees another one.
    """
    rng = random.Random(SEED)
    source = corpus.dialogues(SEED)
    pad = tokenizer.pad_token_id
    while True:
        pool = sorted((encode(tokenizer, messages) for messages in itertools.islice(source, POOL)), key=_length)
        groups: list[list[Example]] = [[]]
        for example in pool:
            if len(example[0]) * (len(groups[-1]) + 1) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            longest = max(map(_length, group))
            ids = torch.full((len(group), longest), pad)
            labels = torch.full((len(group), longest), -100)
            for row, (tokens, learned) in enumerate(group):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, : len(tokens)] = torch.where(torch.tensor(learned), torch.tensor(tokens), -100)
            yield ids, labels


def loss_of(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the learned tokens; the head runs for those only, which saves a third of the time."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # (batch, time - 1, hidden)
    targets = labels[:, 1:]
    places = targets != -100
    return functional.cross_entropy(model.lm_head(hidden[places]), targets[places])


def rate(step: int, steps: int) -> float:
    """The learning rate of a step as a part of the peak: it rises, stays, and falls to almost nothing."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / DECAY)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> list[float]:
    """Trains the model in place and gives the loss of every step."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    losses: list[float] = []
    model.train()
    with _progress() as progress:
        task = progress.add_task("pocket", total=steps, loss="")
        for ids, labels in itertools.islice(batches(tokenizer), steps):
            loss = loss_of(model, ids, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
            progress.update(task, advance=1, loss=f"loss {sum(losses[-50:]) / len(losses[-50:]):.3f}")
    return losses


def draw(losses: list[float], path: Path) -> None:
    """Saves the loss curve as a small picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    mean = [
        sum(losses[max(0, end - 50) : end]) / len(losses[max(0, end - 50) : end]) for end in range(1, len(losses) + 1)
    ]
    axes.plot(losses, linewidth=0.4, color="#9bbcd8", label="each step")
    axes.plot(mean, linewidth=1.4, color="#1f4e79", label="mean of 50")
    axes.set(xlabel="step", ylabel="loss of the answers", yscale="log", title=f"pocket: last 50 steps {mean[-1]:.3f}")
    axes.legend()
    figure.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    """Trains and saves; prints how long it took."""
    parser = argparse.ArgumentParser(prog="python -m workers.pocket.train", description="Makes pocket again.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the files (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    arguments = parser.parse_args()
    began, cpu = time.monotonic(), time.process_time()
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    losses = train(model, tokenizer, arguments.steps)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(arguments.out)
    model.bfloat16().save_pretrained(arguments.out)
    draw(losses, arguments.out / "loss.png")
    print(
        f"{sum(weight.numel() for weight in model.parameters()):,} parameters, "
        f"{(arguments.out / 'model.safetensors').stat().st_size / 1e6:.1f} MB, "
        f"loss {sum(losses[-50:]) / len(losses[-50:]):.4f}, "
        f"{(time.monotonic() - began) / 60:.1f} min, {(time.process_time() - cpu) / 60:.1f} min of CPU"
    )


def _length(example: Example) -> int:
    return len(example[0])


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


if __name__ == "__main__":
    main()
