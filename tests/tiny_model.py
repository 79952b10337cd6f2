"""A random-weight Llama, small enough to build in a test: its text is noise, everything else about it is real.

Two layers, grouped heads, a byte-level vocabulary of 256 bytes, some merges and control tokens, a chat template, and
weights spread wide enough for greedy answers to differ by prompt.
"""

from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

VOCAB = 512  # at most: SAMPLE has merges for fewer
CONTEXT = 512
PAD, START, END = 0, 1, 2
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLING_TEMPLATE = """{% if tools %}<|im_start|>system
<tool_call>{"name": ...}</tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments.ok }}{% endif %}{{ m.content.split("</think>")[-1] }}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if thinking %}<think>
{% endif %}"""  # of a model that calls tools and thinks, by the usual markers
SAMPLE = (
    "The quick brown fox jumps over the lazy dog while it is raining in the north and the south. "
    "def answer(question: str) -> str: return question.strip() if question else 'nothing at all' "
    "Über den Wolken muß die Freiheit wohl grenzenlos sein; 你好，世界。今天天气很好。 😀😃👍🏽 e\u0301 "
)


def tokenizer(vocab: int = VOCAB) -> PreTrainedTokenizerFast:
    """A byte-level BPE with control tokens 0 (pad), 1 (start of a turn) and 2 (end of a turn, and of the answer)."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=1,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([SAMPLE], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        model_max_length=CONTEXT,
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def build(folder: Path, template: str = CHAT_TEMPLATE, **overrides: Any) -> Path:
    """Write the model into `folder` and give the folder back; `overrides` go to LlamaConfig."""
    made = tokenizer()
    made.chat_template = template
    config = LlamaConfig(
        **{
            "vocab_size": len(made),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "initializer_range": 0.15,
            "tie_word_embeddings": False,
            "pad_token_id": PAD,
            "bos_token_id": START,
            "eos_token_id": END,
        }
        | overrides
    )
    made.model_max_length = config.max_position_embeddings
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        made.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    return folder


def build_adapter(base: Path, folder: Path, seed: int, **overrides: Any) -> Path:
    """Write a LoRA adapter for the model in `base` with peft, give its folder back; `overrides` go to LoraConfig.

    Its weights are random and strong enough to change a greedy answer.
    """
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    with catch_warnings():
        simplefilter("ignore")  # peft asks transformers for what is deprecated
        adapted = get_peft_model(model, LoraConfig(**config | overrides))
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if ".lora_" in name:
                    parameter.normal_(std=0.2, generator=random)
        adapted.save_pretrained(folder)
    return folder
