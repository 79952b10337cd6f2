"""An engine for vectors: texts go in, and one vector of length 1 comes out for each, as sentence-transformers makes it.

How the tokens' vectors become one is in the folder: modules.json and the configuration of its pooling. Its prompts are
not: a text is taken as it comes, and whoever wants "query: " before it writes it there, as with any OpenAI server. Inputs of all requests that wait are computed together, sorted by length so that little is padded; no request
waits for all inputs of another. PyTorch has a thread of its own. Vectors are float32, whatever the model computes in.
"""

import asyncio
import json
import logging
from base64 import b64encode
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from broker.errors import BadRequest, ModelUnusable, PromptTooLong, StepFailed
from broker.messages import ChatRequest, EmbedRequest, ModelCard, TokenRequest, wrong_kind
from workers.engine import EngineOptions, Piece, Progress, model
from workers.engine.hub import first_line
from workers.engine.progress import loading
from workers.engine.thread import Thread
from workers.engine.tokens import Tokens

logger = logging.getLogger("fleetchat.engine")

PIECE_BYTES = 262_144  # of vectors in one frame
BATCH_TOKENS = 16_384  # padding included; on a CPU a batch of these would take a large model minutes
CPU_BATCH_TOKENS = 1024
BATCH_INPUTS = 128
WINDOW_SHARE = 8  # a batch's tokens, divided by it: inputs that are sorted together, and that a new request waits for
LEAST_NORM = 1e-12  # as torch.nn.functional.normalize has it
MODES = {  # of sentence-transformers
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean",  # differs in the vector's length only
    "mean_sqrt_len_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
MODULES = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers

Vector = Any  # numpy, float32, shape (dimensions,)
Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
POOLS: Mapping[
    str, Pool
] = {  # (inputs, tokens, dimensions) and (inputs, tokens, 1) -> (inputs, dimensions), of any length
    "cls": lambda states, mask: states[:, 0],
    "lasttoken": lambda states, mask: states[torch.arange(len(states)), mask.sum((1, 2)) - 1],  # behind it is padding
    "max": lambda states, mask: states.masked_fill(mask == 0, -torch.inf).amax(1),
    "mean": lambda states, mask: (states * mask).sum(1) / mask.sum(1),
    "weightedmean": lambda states, mask: (states * mask * mask.cumsum(1)).sum(1) / mask.cumsum(1).sum(1),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a folder wants its vectors made."""

    pooling: str  # one of POOLS
    most_tokens: int | None
    lower: bool


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model that is ready to run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    context: int  # tokens of one input
    dimensions: int

    @property
    def words(self) -> int:
        """Token ids that the model knows, from 0."""
        embeddings: Any = self.model.get_input_embeddings()
        return int(embeddings.weight.shape[0])


@dataclass(eq=False, slots=True)
class Input:
    """One input that waits for its vector."""

    ids: Sequence[int]
    vector: asyncio.Future[Vector]


class Vectors:
    """The vectors of one request as they are being made."""

    completion_tokens = None

    def __init__(self, inputs: Sequence[Input], dimensions: int, said: int) -> None:
        self.prompt_tokens = sum(len(one.ids) for one in inputs)
        self._inputs, self._dimensions = inputs, dimensions
        self._many = per_piece(dimensions)
        self._start = said * self._many

    async def __aiter__(self) -> AsyncIterator[Piece]:
        for i in range(self._start, len(self._inputs), self._many):
            vectors = await asyncio.gather(*(one.vector for one in self._inputs[i : i + self._many]))
            found = np.stack(vectors)[:, : self._dimensions]  # (inputs, dimensions)
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), LEAST_NORM)
            yield Piece("", data={"vectors": [b64encode(one).decode() for one in found.astype("<f4")]})
        yield Piece("", finish="stop")


class EncoderEngine:
    """See `workers.engine.Engine` and `workers.engine.Embedder`."""

    resumable = True
    cache_use = 0.0

    def __init__(self, encoder: Encoder, name: str, slots: int, thread: Thread) -> None:
        self.cards = (ModelCard(name, kind="embedding", context=encoder.context),)
        self.slots = slots
        self.device = str(encoder.model.device)
        self.dtype = str(encoder.model.dtype).removeprefix("torch.")
        self.steps = 0
        self._encoder, self._thread = encoder, thread
        self._tokens = Tokens(
            encoder.tokenizer, partial(_write, encoder), encoder.context, encoder.words, lower=encoder.recipe.lower
        )
        self._most = CPU_BATCH_TOKENS if encoder.model.device.type == "cpu" else BATCH_TOKENS
        self._waiting: list[deque[Input]] = []  # of each request
        self._computing = False
        self._some = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @property
    def alive(self) -> bool:
        return not self._task.done()

    @property
    def busy(self) -> bool:
        return self._computing or bool(self._waiting)

    @asynccontextmanager
    async def embed(self, request: EmbedRequest, said: int = 0) -> AsyncIterator[Vectors]:
        encoder = self._encoder
        dimensions = request.dimensions or encoder.dimensions
        if dimensions > encoder.dimensions:
            raise BadRequest(
                f"{request.model} has {encoder.dimensions} dimensions, which are fewer than {dimensions}.",
                param="dimensions",
            )
        loop = asyncio.get_running_loop()
        ids = await self._thread.do(partial(tokenize, encoder, request))
        inputs = [Input(one, loop.create_future()) for one in ids]
        queue = deque(inputs[said * per_piece(dimensions) :])
        if queue:
            self._waiting.append(queue)
            self._some.set()
        try:
            yield Vectors(inputs, dimensions, said)
        finally:
            if queue in self._waiting:
                self._waiting.remove(queue)
            for one in inputs:
                if not one.vector.cancel() and not one.vector.cancelled():
                    one.vector.exception()  # so that nobody is told that it was never read

    async def tokens(self, request: TokenRequest) -> dict[str, Any]:
        """What the tokenizer says; see the protocol."""
        return await self._tokens.tell(request)

    @asynccontextmanager
    async def generate(self, request: ChatRequest, said: Sequence[int] = ()) -> AsyncIterator[NoReturn]:
        """It cannot answer."""
        raise wrong_kind(request)
        yield

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        self._thread.end()

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                for batch in batches(self._take(), self._most):
                    await self._compute([one for one in batch if not one.vector.done()])

    def _take(self) -> list[Input]:
        """The next inputs, as many from each request as from the others."""
        share = max(1, self._most // WINDOW_SHARE // len(self._waiting))
        taken = [queue.popleft() for queue in self._waiting for _ in range(min(share, len(queue)))]
        self._waiting = [queue for queue in self._waiting if queue]
        return taken

    async def _compute(self, batch: Sequence[Input]) -> None:
        if not batch:
            return
        self._computing = True
        try:
            vectors = await self._thread.do(partial(encode, self._encoder, [one.ids for one in batch]))
        except Exception:
            logger.exception("a batch of %d inputs failed", len(batch))
            for one in batch:
                if not one.vector.done():
                    one.vector.set_exception(StepFailed())
        else:
            for one, vector in zip(batch, vectors, strict=True):
                if not one.vector.done():
                    one.vector.set_result(vector)
        finally:
            self.steps += 1
            self._computing = False


def per_piece(dimensions: int) -> int:
    """Vectors in one piece."""
    return max(1, PIECE_BYTES // (4 * dimensions))


def batches(inputs: Sequence[Input], most: int) -> Iterator[list[Input]]:
    """All inputs, those of similar length together, in batches of at most so many tokens with their padding."""
    batch: list[Input] = []
    for one in sorted(inputs, key=lambda one: len(one.ids)):
        if batch and (len(batch) == BATCH_INPUTS or (len(batch) + 1) * len(one.ids) > most):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def tokenize(encoder: Encoder, request: EmbedRequest) -> list[Sequence[int]]:
    """The token ids of each input; what comes as ids is taken as it is.

    Raises:
        PromptTooLong, BadRequest: an input is too long, or has an id that the model does not know.
    """
    texts = [one.lower() if encoder.recipe.lower else one for one in request.inputs if isinstance(one, str)]
    made = iter(encoder.tokenizer(texts, verbose=False)["input_ids"] if texts else ())
    ids: list[Sequence[int]] = [next(made) if isinstance(one, str) else one for one in request.inputs]
    words = encoder.words
    for i, one in enumerate(ids):
        if len(one) > encoder.context:
            raise PromptTooLong(
                f"Input {i} has {len(one)} tokens, and {request.model} takes {encoder.context}. Split it.",
                param="input",
            )
        if not one or max(one) >= words:
            raise BadRequest(f"Input {i} is no list of this model's tokens, of which it has {words}.", param="input")
    return ids


def _write(encoder: Encoder, request: ChatRequest, begin: bool) -> Sequence[int]:
    if not isinstance(request.prompt, str):
        raise BadRequest(f"{request.model} gives embeddings and has no chat template. Send a prompt.", param="messages")
    text = request.prompt.lower() if encoder.recipe.lower else request.prompt
    return list(encoder.tokenizer.encode(text, verbose=False))


@torch.inference_mode()
def encode(encoder: Encoder, batch: Sequence[Sequence[int]]) -> Any:
    """The vectors of some inputs: numpy, float32, shape (inputs, dimensions), of any length.

    Source: POOLS are those of sentence-transformers' Pooling; tokens that are padding count nowhere.
    """
    pad: Any = encoder.tokenizer.pad_token_id
    longest, device = max(map(len, batch)), encoder.model.device
    ids = torch.tensor([[*one, *[pad or 0] * (longest - len(one))] for one in batch], device=device)  # (inputs, tokens)
    lengths = torch.tensor([len(one) for one in batch], device=device)
    mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
    states = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # (inputs, tokens, dimensions)
    return POOLS[encoder.recipe.pooling](states, mask[:, :, None]).cpu().numpy()


def load(options: EngineOptions, progress: Progress) -> Encoder:
    """The encoder in a folder or on the hub.

    Raises:
        ModelUnusable: with one sentence that says what is wrong.
    """
    progress(0)
    source = options.models[0]
    if len(options.models) > 1 or options.quantization != "none" or options.parallel > 1:
        raise ModelUnusable(f"{source.name} gives embeddings: it takes no adapters, no quantisation and one device.")
    place = model.pick_device(options.device)
    folder, start = model.find_folder(source, progress)
    recipe = read_recipe(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=source.trust_remote_code)
    except Exception as error:  # transformers raises whatever a strange value leads it to
        raise model.refusal(folder, f"{folder} is no model that can be used", error) from error
    if config.is_encoder_decoder:
        raise ModelUnusable(f"{folder} is an encoder with a decoder, of which no embeddings can be had here.")
    shapes = model.tensor_shapes(model.weight_files(folder))
    tokenizer = model.read_tokenizer(folder, source.trust_remote_code)

    def needed(dtype: torch.dtype) -> int:
        return sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize

    dtype = model.pick_dtype(options.dtype, config, place, "none", needed, folder)
    with loading(lambda percent: progress(start + percent * (100 - start) // 100)):
        loaded = model.read_model(
            folder, config, place, dtype, None, source.trust_remote_code, None, AutoModel, ("pooler.",)
        )
    loaded.config.use_cache = False  # a decoder's keys and values, which nothing will be written behind
    context = min(model.context_of(loaded, tokenizer), recipe.most_tokens or 1 << 30)
    progress(100)
    return Encoder(loaded, tokenizer, recipe, context, config.get_text_config().hidden_size)


def read_recipe(folder: Path) -> Recipe:
    """What sentence-transformers' files in a folder say; the mean, as it does itself, where they are absent.

    Raises:
        ModelUnusable: they cannot be read, or ask for what is not known here.
    """
    try:
        modules = _read(folder / "modules.json") or []
        kinds = {module["type"].rpartition(".")[2]: folder / module["path"] for module in modules}
        said = _read(kinds.get("Pooling", folder / "1_Pooling") / "config.json") or {}
        base = _read(folder / "sentence_bert_config.json") or {}
        modes = [said["pooling_mode"]] if "pooling_mode" in said else []
        modes += [name for name, value in said.items() if name.startswith("pooling_mode_") and value is True]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnusable(
            f"{folder} has modules of sentence-transformers that cannot be read: {first_line(error)}."
        ) from error
    if strange := [kind for kind in kinds if kind not in MODULES]:
        raise ModelUnusable(f"{folder} has a module of the kind {strange[0]}, which is not known here.")
    found = [MODES.get(mode, mode) for mode in modes] or ["mean"]
    if len(found) > 1 or found[0] not in POOLS:
        raise ModelUnusable(
            f"{folder} asks for the pooling {' and '.join(map(str, found))}; known are {', '.join(POOLS)}."
        )
    return Recipe(found[0], base.get("max_seq_length"), bool(base.get("do_lower_case")))


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


async def open_engine(options: EngineOptions, progress: Progress) -> EncoderEngine:
    """Loads in the engine's thread."""
    with ExitStack() as stack:
        thread = stack.enter_context(Thread())
        encoder = await thread.load(partial(load, options), progress)
        stack.pop_all()  # the engine ends it
    return EncoderEngine(encoder, options.models[0].name, options.slots, thread)
