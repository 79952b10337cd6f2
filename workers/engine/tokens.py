"""What a model's tokenizer says: the ids of a text or of messages, how many they are, the text of ids, and itself.

The ids of messages, and the count of a prompt, are what an answer to them would start from. Those of a text are the
tokenizer's own: a control string in it is a control token, since whoever asks does so to send ids.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from broker.errors import BadRequest
from broker.messages import ChatRequest, TokenRequest

LARGE_PROMPT = 4_000  # bytes; a larger one is worked on in a thread, so that the event loop stays free
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
SETTINGS = ("padding_side", "truncation_side", "clean_up_tokenization_spaces", "add_bos_token", "add_eos_token")

Write = Callable[[ChatRequest, bool], Sequence[int]]
"""The ids of a request, as the engine would answer it; False: without the place where the answer begins."""


class Tokens:
    """The tokenizer of one engine, for whoever asks about it."""

    def __init__(self, tokenizer: Any, write: Write, context: int, ids: int, *, lower: bool = False) -> None:
        """
        Args:
            context: tokens that the model takes.
            ids: how many token ids the model knows, from 0.
            lower: whether the model is given texts in lower case.
        """
        self._tokenizer, self._write, self._lower = tokenizer, write, lower
        self._context, self._ids = context, ids
        self._large = asyncio.Lock()  # one thread is enough: more would only take the model's processors
        self._ops: dict[str, Callable[[TokenRequest], dict[str, Any]]] = {
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
            "count": self._count,
            "info": self._info,
        }

    async def tell(self, request: TokenRequest) -> dict[str, Any]:
        """What `workers.engine.Tokenizing` says.

        Raises:
            BadRequest: an id that the model does not know, or messages that its template refuses.
        """
        op = self._ops[request.op]
        if request.size <= LARGE_PROMPT:
            return op(request)
        async with self._large:
            return await asyncio.to_thread(op, request)

    def _tokenize(self, request: TokenRequest) -> dict[str, Any]:
        text = request.of.prompt
        if isinstance(text, str):
            text = text.lower() if self._lower else text
            ids = self._tokenizer.encode(text, add_special_tokens=request.add_special_tokens, verbose=False)
        else:
            ids = self._write(request.of, request.add_generation_prompt)
        found = {"tokens": list(ids), "max_model_len": self._context}
        return found | ({"token_strs": self._tokenizer.convert_ids_to_tokens(ids)} if request.strings else {})

    def _count(self, request: TokenRequest) -> dict[str, Any]:
        return {"count": len(self._write(request.of, True)), "max_model_len": self._context}

    def _detokenize(self, request: TokenRequest) -> dict[str, Any]:
        ids: Any = request.of.prompt
        if unknown := [i for i in ids if not 0 <= i < self._ids]:
            raise BadRequest(f"tokens has {unknown[0]}, and this model's go from 0 to {self._ids - 1}.", param="tokens")
        return {"prompt": self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)}

    def _info(self, request: TokenRequest) -> dict[str, Any]:
        """What transformers has in tokenizer_config.json, but nothing of where its files lie."""
        tokenizer, template = self._tokenizer, self._tokenizer.chat_template
        special = {name: getattr(tokenizer, name, None) for name in NAMED}
        numbers = {f"{name}_id": getattr(tokenizer, f"{name}_id", None) for name in NAMED}
        return {
            "tokenizer_class": type(tokenizer).__name__,
            "vocab_size": len(tokenizer),
            "model_max_length": self._context,
            "chat_template": template.get("default") if isinstance(template, dict) else template,
            **special,
            **numbers,
            **{name: value for name in SETTINGS if (value := getattr(tokenizer, name, None)) is not None},
        }
