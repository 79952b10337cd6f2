"""What the API answers, as types: the shape of every object that `webapp.openai_answers` and `webapp.tokens` write.

They are closed: what is not here does not come. `NotRequired` is absent when there is nothing to say; `| None` is null.
"""

from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on

FINISH = Literal["stop", "length", "tool_calls", "content_filter"]
Finish = Annotated[FINISH, Field(description="Why the answer ended.")]
Index = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Created = Annotated[int, Field(description="Seconds since 1970.")]
Logprob = Annotated[float, Field(le=0)]
Bytes = list[Annotated[int, Field(ge=0, le=255)]]


class Closed(TypedDict):
    """An object with nothing more in it."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]


class Usage(Closed):
    """Tokens. A prompt counts once, however many answers it has."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class OtherToken(Closed):
    """A token that was likely, too."""

    token: str
    logprob: Logprob
    bytes: Annotated[Bytes, Field(description="The token's UTF-8; one token may be part of a character.")]


class TokenScore(OtherToken):
    """A token of the answer, and how likely it was."""

    top_logprobs: list[OtherToken]


class ChatScores(Closed):
    """Log-probabilities, of each token."""

    content: list[TokenScore]
    refusal: None


class Called(Closed):
    """What the model calls."""

    name: str
    arguments: Annotated[str, Field(description="JSON, as the model wrote it.")]


class Call(Closed):
    """A call of one of the request's tools."""

    id: str
    type: Literal["function"]
    function: Called


class AnswerMessage(Closed):
    """What the model said."""

    role: Literal["assistant"]
    content: Annotated[str | None, Field(description="null when the answer is calls and nothing else.")]
    refusal: None
    reasoning_content: NotRequired[Annotated[str, Field(description="What it thought before it answered.")]]
    tool_calls: NotRequired[list[Call]]


class ChatChoice(Closed):
    """One of `n` answers."""

    index: Index
    message: AnswerMessage
    logprobs: ChatScores | None
    finish_reason: Finish


class ChatAnswer(Closed):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: Created
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: None


class CalledDelta(Closed):
    """What is new in a call."""

    name: NotRequired[str]
    arguments: NotRequired[str]


class CallDelta(Closed):
    """A call as it is written: its id and name first, then its arguments, piece by piece."""

    index: Index
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: CalledDelta


class Delta(Closed):
    """What is new in a message."""

    role: NotRequired[Annotated[Literal["assistant"], Field(description="In the first one only.")]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[CallDelta]]


class ChunkChoice(Closed):
    """What is new in one of `n` answers."""

    index: Index
    delta: Delta
    logprobs: ChatScores | None
    finish_reason: Annotated[FINISH | None, Field(description="null until the last one.")]


ChunkUsage = Annotated[
    Usage | None,
    Field(description="As stream_options ask: of the whole in a last chunk without choices, or so far in each."),
]


class ChatChunk(Closed):
    """A piece of the answer to a chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Created
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[ChunkUsage]


class CompletionScores(Closed):
    """Log-probabilities, lists with an entry for each token. The first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[Logprob | None]
    top_logprobs: list[dict[str, Logprob] | None]
    text_offset: list[Index]


class CompletionChoice(Closed):
    """One of the answers: all to the first prompt, then all to the next one."""

    index: Index
    text: str
    logprobs: CompletionScores | None
    finish_reason: Finish


class CompletionAnswer(Closed):
    """How the prompts go on."""

    id: str
    object: Literal["text_completion"]
    created: Created
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: None


class CompletionPiece(Closed):
    """What is new in one of the answers."""

    index: Index
    text: str
    logprobs: CompletionScores | None
    finish_reason: Annotated[FINISH | None, Field(description="null until the last one.")]


class CompletionChunk(Closed):
    """A piece of how a prompt goes on."""

    id: str
    object: Literal["text_completion"]
    created: Created
    model: str
    choices: list[CompletionPiece]
    usage: NotRequired[ChunkUsage]


class Vector(Closed):
    """The vector of one input, of length 1."""

    object: Literal["embedding"]
    index: Index
    embedding: Annotated[
        list[float] | str, Field(description="Numbers; with encoding_format base64 their float32, little-endian.")
    ]


class VectorUsage(Closed):
    """Tokens of all inputs."""

    prompt_tokens: Count
    total_tokens: Count


class VectorList(Closed):
    """The vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[Vector]
    model: str
    usage: VectorUsage


class ModelEntry(Closed):
    """A model."""

    id: str
    object: Literal["model"]
    created: Created
    owned_by: str
    root: Annotated[str, Field(description="The model whose weights it uses: its parent's, or its own.")]
    parent: Annotated[str | None, Field(description="Of an adapter: the model that it changes.")]
    max_model_len: Annotated[int | None, Field(description="Tokens, prompt and answer together; vLLM's name.")]
    context_length: Annotated[int | None, Field(description="The same; OpenRouter's name.")]
    kind: Literal["chat", "embedding"]
    state: Literal["ready", "loading", "failed", "gone"]
    abilities: list[str]


class ModelList(Closed):
    """All models that can be asked, now or soon."""

    object: Literal["list"]
    data: list[ModelEntry]


class Problem(Closed):
    """What went wrong."""

    message: Annotated[str, Field(description="What happened and what to do, for people.")]
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: Annotated[str | None, Field(description="The field of the request that is wrong, as messages[0].role.")]
    code: Annotated[str | None, Field(description="What happened, for programs.")]


class ErrorAnswer(Closed):
    """OpenAI's error object."""

    error: Problem


class TokenIds(Closed):
    """The tokens of a text or a chat."""

    count: Count
    max_model_len: Annotated[int, Field(description="Tokens that the model takes.")]
    tokens: list[Index]
    token_strs: Annotated[list[str] | None, Field(description="As the vocabulary writes them, if asked for.")]


class TokenText(Closed):
    """The text of token ids."""

    prompt: str


Special = str | None


class TokenizerInfo(Closed):
    """What is in tokenizer_config.json, as far as the model has it."""

    model: str
    tokenizer_class: str
    model_max_length: int
    chat_template: str | None
    vocab_size: NotRequired[int]
    bos_token: Special
    eos_token: Special
    pad_token: Special
    unk_token: NotRequired[Special]
    sep_token: NotRequired[Special]
    cls_token: NotRequired[Special]
    mask_token: NotRequired[Special]
    bos_token_id: NotRequired[int | None]
    eos_token_id: NotRequired[int | None]
    pad_token_id: NotRequired[int | None]
    unk_token_id: NotRequired[int | None]
    sep_token_id: NotRequired[int | None]
    cls_token_id: NotRequired[int | None]
    mask_token_id: NotRequired[int | None]
    padding_side: NotRequired[str]
    truncation_side: NotRequired[str]
    clean_up_tokenization_spaces: NotRequired[bool]
    add_bos_token: NotRequired[bool]
    add_eos_token: NotRequired[bool]


class Fit(Closed):
    """Of one prompt."""

    fits: bool
    tokenCount: Count
    contextLength: Count


class TokenChecks(Closed):
    """Of each prompt."""

    prompts: list[Fit]
