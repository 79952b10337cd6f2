"""What models' tokenizers say: vLLM's endpoints, which lm-eval looks for, and FastChat's token_check.

They are jobs of a worker, beside its slots, so they never wait behind answers. A body that names no model, as lm-eval's,
means the only one that is there.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from aiohttp import web
from pydantic import AfterValidator, Field, WithJsonSchema

from broker import chat, registry
from broker.errors import BadRequest, NoWorker, from_map
from broker.messages import TOKEN_ID, ChatRequest, TokenRequest
from webapp import access
from webapp.calls import CALLS, read_body
from webapp.openai_answers import Map, dump
from webapp.openai_types import ChatMessage, ModelName, Tool, check
from webapp.protocol import Closed
from webapp.state import BROKER

MOST_CHECKS = 1024  # prompts of one token_check


def _is_false(value: bool) -> bool:  # to a Literal, 0 would be False
    if value:
        raise ValueError("a chat template writes its own special tokens")
    return value


MaybeModel = Annotated[str | None, Field(min_length=1, max_length=128, description="As /v1/models has it.")]


class TokenizeText(Closed):
    """POST /tokenize of a text."""

    model: MaybeModel = None
    prompt: str
    add_special_tokens: bool = Field(
        default=True, description="Whether those come that the tokenizer puts around texts."
    )
    return_token_strs: bool = Field(
        default=False, description="Whether each token comes as the vocabulary writes it, too."
    )

    def request(self, model: str, owner: str) -> TokenRequest:
        """For the fleet."""
        of = ChatRequest(model, (), owner=owner, prompt=self.prompt)
        return TokenRequest("tokenize", of, add_special_tokens=self.add_special_tokens, strings=self.return_token_strs)


class TokenizeChat(Closed):
    """POST /tokenize of messages."""

    model: MaybeModel = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: Annotated[bool, AfterValidator(_is_false), WithJsonSchema({"const": False})] = Field(
        default=False, description="A template writes its own, so this can only be false."
    )
    return_token_strs: bool = False
    tools: list[Tool] = Field(default_factory=list)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    def request(self, model: str, owner: str) -> TokenRequest:
        """For the fleet."""
        of = ChatRequest(
            model,
            tuple(message.message() for message in self.messages),
            owner=owner,
            tools=tuple(tool.model_dump(exclude_none=True) for tool in self.tools),
            template_kwargs=self.chat_template_kwargs,
            continue_final_message=self.continue_final_message,
        )
        begin, strings = self.add_generation_prompt, self.return_token_strs
        return TokenRequest("tokenize", of, add_generation_prompt=begin, strings=strings)


class Detokenize(Closed):
    """POST /detokenize."""

    model: MaybeModel = None
    tokens: list[Annotated[int, Field(ge=0, le=TOKEN_ID)]] = Field(description="Ids that the model knows.")


class Checked(Closed):
    """One prompt of a token_check."""

    model: ModelName
    prompt: str
    max_tokens: Annotated[int, Field(ge=0)]


class TokenCheck(Closed):
    """POST /api/v1/token_check."""

    prompts: Annotated[list[Checked], Field(max_length=MOST_CHECKS)]


async def tokenize(request: web.Request) -> web.Response:
    """POST /tokenize: the ids of a text, or of messages as the model's template writes them."""
    body = await read_body(request)
    asked = check(TokenizeText, body) if body.get("messages") is None else check(TokenizeChat, body)
    model = await _model(request, asked.model)
    said = await _ask(request, asked.request(model, request[access.ACCOUNT].id))
    return _json({"count": len(said["tokens"]), "token_strs": None} | said)


async def detokenize(request: web.Request) -> web.Response:
    """POST /detokenize: the text of ids, control tokens included."""
    asked = check(Detokenize, await read_body(request))
    model = await _model(request, asked.model)
    return _json(await _ask(request, TokenRequest("detokenize", _prompt(request, model, asked.tokens))))


async def tokenizer_info(request: web.Request) -> web.Response:
    """GET /tokenizer_info: the tokenizer's configuration, with its control tokens and its chat template."""
    model = await _model(request, request.query.get("model"))
    said = await _ask(request, TokenRequest("info", _prompt(request, model, ())))
    return _json({"model": model} | said)


async def token_check(request: web.Request) -> web.Response:
    """POST /api/v1/token_check, as FastChat has it: whether prompts and so many tokens of answers fit their models."""
    asked = check(TokenCheck, await read_body(request))
    found = []
    for one in asked.prompts:
        of = _prompt(request, await _model(request, one.model), one.prompt)
        said = await _ask(request, TokenRequest("count", of))
        count, context = said["count"], said["max_model_len"]
        found.append({"fits": count + one.max_tokens <= context, "tokenCount": count, "contextLength": context})
    return _json({"prompts": found})


async def _model(request: web.Request, name: str | None) -> str:
    """The model that is meant.

    Raises:
        NoSuchModel: the key may not use it.
        BadRequest, NoWorker: none is named, and there are several, or none.
    """
    if name is not None:
        access.check_model(request, name)
        return name
    names = [
        state.card.name
        for state in await registry.models(request.app[BROKER])
        if state.state in ("ready", "loading") and state.card.kind == "chat"
        if request[access.ACCOUNT].allows(state.card.name)
    ]
    if len(names) > 1:
        raise BadRequest("Several models are served. Say in `model` which one is meant.", param="model")
    if not names:
        raise NoWorker("No model is served right now. Start a worker for one.")
    return names[0]


def _prompt(request: web.Request, model: str, prompt: str | Sequence[int]) -> ChatRequest:
    owner = request[access.ACCOUNT].id
    return ChatRequest(model, (), owner=owner, prompt=prompt if isinstance(prompt, str) else tuple(prompt))


async def _ask(request: web.Request, wanted: TokenRequest) -> Map:
    """What the worker says; raises what it refuses."""
    said: Map = {}
    app, at_once = request.app, request[access.ACCOUNT].at_once
    async with app[CALLS].open(), chat.ask(app[BROKER], wanted, at_once=at_once) as reader:
        async for received in reader:
            frame = received.decode()
            said = frame.data or said
    if failed := (frame.end or {}).get("error"):
        raise from_map(failed)
    return said


def _json(document: Map) -> web.Response:
    return web.Response(body=dump(document), content_type="application/json")
