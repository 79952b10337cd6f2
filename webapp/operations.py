"""The API's operations in one table, from which come its routes, its OpenAPI document and the page that shows it.

A new operation is one entry here.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from broker import errors
from broker.errors import FleetError
from webapp import openai_api, openai_objects, openai_types, tokens
from webapp.protocol import Closed

EVERYWHERE = (errors.Unauthorized, errors.Forbidden, FleetError, errors.RedisAway)
READ = (errors.BadRequest, errors.PromptTooLarge, errors.RateLimited)  # what a body can be refused for
ASKED = (  # what can go wrong with a request that a worker answers
    *READ,
    errors.PromptEmpty,
    errors.PromptTooLong,
    errors.NoSuchModel,
    errors.QueueFull,
    errors.ShareUsed,
    errors.NoWorker,
    errors.WaitedTooLong,
    errors.StorageFull,
    errors.ShuttingDown,
    errors.RanTooLong,
    errors.WorkerLost,
    errors.EngineFailed,
    errors.UpstreamFailed,
    errors.KeyRefused,
)
ONE_MODEL = "Without `model` the only one that is served is meant."


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address."""

    method: str
    path: str  # as the router has it
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    name: str  # of the route, and its id in the document
    summary: str
    about: str
    answer: Any  # the type of the object that comes back
    event: Any = None  # the type of an event's, where `stream` is true
    asked: tuple[type[Closed], ...] = ()  # the body: one of these
    example: Mapping[str, Any] = field(default_factory=dict)  # of the body, or of the parameters
    parameters: Mapping[str, str] = field(default_factory=dict)  # in the path or behind it, and what they are
    errors: tuple[type[FleetError], ...] = ()
    also: str = ""  # another address that does the same

    @property
    def refusals(self) -> tuple[type[FleetError], ...]:
        """All errors that it may end with."""
        return (*self.errors, *EVERYWHERE)

    @property
    def names(self) -> dict[str, str]:
        """All its paths, and the names of their routes."""
        return {self.path: self.name} | ({self.also: f"{self.name}-also"} if self.also else {})

    @property
    def routes(self) -> list[web.RouteDef]:
        """For `app.add_routes`."""
        add = {"GET": web.get, "POST": web.post}[self.method]
        return [add(path, self.handler, name=name) for path, name in self.names.items()]


OPERATIONS = (
    Operation(
        "POST",
        "/v1/chat/completions",
        openai_api.chat_completions,
        "v1-chat-completions",
        "Answer a chat",
        "The model reads the conversation by its own chat template and says what comes next. With `stream: true` the answer "
        "comes as server-sent events, each with a `ChatChunk`, the last one `[DONE]`; what goes wrong after the first event "
        "comes as one with an `ErrorAnswer`. The request ends when its caller goes away.",
        openai_objects.ChatAnswer,
        openai_objects.ChatChunk,
        (openai_types.ChatCompletion,),
        {"model": "pocket", "messages": [{"role": "user", "content": "Hello!"}]},
        errors=ASKED,
    ),
    Operation(
        "POST",
        "/v1/completions",
        openai_api.completions,
        "v1-completions",
        "Go on with a text",
        "No chat template: the answer goes on from the prompt itself. With `echo`, `logprobs` and `max_tokens: 1` it scores "
        "the prompt. A stream is like a chat's, with a `CompletionChunk` in each event.",
        openai_objects.CompletionAnswer,
        openai_objects.CompletionChunk,
        (openai_types.Completion,),
        {"model": "pocket", "prompt": "Once upon a time", "max_tokens": 32},
        errors=ASKED,
    ),
    Operation(
        "POST",
        "/v1/embeddings",
        openai_api.embeddings,
        "v1-embeddings",
        "Turn texts into vectors",
        "For models of kind `embedding`. Inputs that are too long are refused, not cut. Token ids are taken as they are, with "
        "the special tokens that the model wants.",
        openai_objects.VectorList,
        asked=(openai_types.Embedding,),
        example={"model": "all-MiniLM-L6-v2", "input": ["A cat sat on the mat.", "Quantum chromodynamics."]},
        errors=ASKED,
    ),
    Operation(
        "GET",
        "/v1/models",
        openai_api.models,
        "v1-models",
        "List models",
        "Those that the key may ask and that are ready or loading.",
        openai_objects.ModelList,
    ),
    Operation(
        "GET",
        "/v1/models/{id:.+}",
        openai_api.model,
        "v1-model",
        "Show a model",
        "Any that was ever offered, with its state.",
        openai_objects.ModelEntry,
        parameters={"id": "The model's name. A slash in it may stand as it is."},
        example={"id": "pocket"},
        errors=(errors.NoSuchModel,),
    ),
    Operation(
        "POST",
        "/tokenize",
        tokens.tokenize,
        "tokenize",
        "Token ids of a text or a chat",
        f"As vLLM has it. {ONE_MODEL} Of messages they are what the answer would start from. A worker says it beside its "
        "answers, without waiting for them.",
        openai_objects.TokenIds,
        asked=(tokens.TokenizeText, tokens.TokenizeChat),
        example={"model": "pocket", "prompt": "Hello!"},
        errors=ASKED,
        also="/v1/tokenize",
    ),
    Operation(
        "POST",
        "/detokenize",
        tokens.detokenize,
        "detokenize",
        "The text of token ids",
        f"Control tokens included. {ONE_MODEL}",
        openai_objects.TokenText,
        asked=(tokens.Detokenize,),
        example={"model": "pocket", "tokens": [72, 101]},
        errors=ASKED,
        also="/v1/detokenize",
    ),
    Operation(
        "GET",
        "/tokenizer_info",
        tokens.tokenizer_info,
        "tokenizer-info",
        "What a tokenizer is like",
        f"Its configuration, with its control tokens and its chat template, as lm-eval reads it. {ONE_MODEL}",
        openai_objects.TokenizerInfo,
        parameters={"model": "As /v1/models has it."},
        example={"model": "pocket"},
        errors=ASKED,
    ),
    Operation(
        "POST",
        "/api/v1/token_check",
        tokens.token_check,
        "token-check",
        "Whether prompts fit their models",
        "As FastChat has it: each prompt with so many tokens of an answer.",
        openai_objects.TokenChecks,
        asked=(tokens.TokenCheck,),
        example={"prompts": [{"model": "pocket", "prompt": "Hello!", "max_tokens": 100}]},
        errors=ASKED,
    ),
)
