"""Random-weight models of several families whose greedy answers are as varied as a trained model's.

Random weights easily say one token for ever, which would prove nothing; the spreads here were chosen so that an answer
of 90 tokens holds at least 50 different ones and no two prompts get the same answer. The tests assert both.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, Qwen3Config

from tests.tiny_model import tokenizer

CONTEXT = 2048
COMMON: dict[str, Any] = {
    "vocab_size": 8192,  # more than the tokenizer has
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {"initializer_range": 0.2}),
    "qwen3": (Qwen3Config, {"initializer_range": 0.2, "head_dim": 48}),
    "gemma2": (
        Gemma2Config,  # a window in every other layer, soft caps, its own scale of the scores
        {
            "initializer_range": 0.2,
            "head_dim": 32,
            "sliding_window": 100,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
        },
    ),
    "mistral": (MistralConfig, {"initializer_range": 0.2, "sliding_window": 70}),  # a window in every layer
}


def build(family: str, folder: Path) -> Path:
    """Write a model of that family, whose prompt is the messages' text and nothing else, into `folder`."""
    made = tokenizer()
    made.model_max_length = CONTEXT
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    kind, more = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(kind(**COMMON | more))
        head = model.get_output_embeddings()
        torch.nn.init.normal_(head.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
