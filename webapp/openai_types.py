"""What programs may send to /v1, as closed schemas, and its translation to what `ask()` takes. All of it is here.

A field that is not known is refused by its name: 400 with `param`. `null` means absent. What is HARMLESS is accepted and
does nothing, since no answer depends on it.
"""

import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator

from broker.errors import BadRequest
from broker.messages import (
    BIAS,
    COUNTS,
    LONGEST_STOP,
    MOST_INPUTS,
    RANGES,
    ROLES,
    TOKEN_ID,
    ChatRequest,
    EmbedRequest,
    Message,
    Sampling,
    Structure,
)
from webapp.protocol import Closed

HARMLESS = (  # for OpenAI's own accounts, caches and prices
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)
HARMLESS_IN_MESSAGES = (
    "refusal",
    "annotations",
    "audio",
    "reasoning_content",
    "reasoning",
)  # of an earlier answer, sent back
MOST_CHOICES = 128  # n and best_of
MOST_ANSWERS = 1024  # of all prompts of a request together
COMPLETION_TOKENS = 16  # OpenAI's own default

Prompt = str | tuple[int, ...]
M = TypeVar("M", bound="Closed")


def _ranged(name: str, default: Any = None, **limits: Any) -> Any:
    """A field with the limits that `Sampling` has for it."""
    _, least, most = RANGES[name]
    return Field(default, **({"ge": least, "le": most} | limits))


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _joined(value: Any) -> Any:
    """Content as a text: its parts, which have to be texts, a line each."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"a part of type {str(kind)[:40]!r} is not supported here, only text")
        texts.append(part["text"])
    return "\n".join(texts)


def _prompts(value: Any) -> Any:
    """Prompts of all four forms as a list; ids as tuples."""
    found = [value] if isinstance(value, str) or _is_ids(value) else value
    if not isinstance(found, list) or not found:
        raise ValueError("a text, token ids, or a list of one of these is expected")
    if not (all(isinstance(one, str) for one in found) or all(_is_ids(one) for one in found)):
        raise ValueError("a text, token ids, or a list of one of these is expected")
    return [one if isinstance(one, str) else tuple(one) for one in found]


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int and 0 <= i <= TOKEN_ID for i in value)


def _prompts_schema(most: int) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": TOKEN_ID}, "minItems": 1}
    lists = [{"type": "array", "items": one, "minItems": 1, "maxItems": most} for one in (text, ids)]
    return {"anyOf": [text, ids, *lists]}


_TEXT = {"type": "string"}
_STOP = _TEXT | {"maxLength": LONGEST_STOP}
Texts = Annotated[
    list[Annotated[str, Field(max_length=LONGEST_STOP)]],
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": COUNTS["stop"]}]}),
]
Content = Annotated[
    str,
    BeforeValidator(_joined),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": _TEXT},
                        "required": ["type", "text"],
                    },
                },
            ]
        }
    ),
]
Prompts = Annotated[list[Any], BeforeValidator(_prompts)]
ModelName = Annotated[str, Field(min_length=1, max_length=128, description="As /v1/models has it.")]
ONE_FORM = "An answer can have one form only."
PASSED_OVER = "Passed over beside structured_outputs, since some send both."


class CalledFunction(Closed):
    """What a model calls, its arguments as JSON."""

    name: str
    arguments: str = ""


class ToolCall(Closed):
    """A call in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ChatMessage(Closed):
    """One message of any role."""

    HARMLESS = HARMLESS_IN_MESSAGES

    role: Literal[ROLES]  # type: ignore[valid-type]
    content: Content = ""
    name: str = ""
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: str = ""

    def message(self) -> Message:
        """As models get it."""
        calls = tuple(call.model_dump(exclude={"index"}) for call in self.tool_calls)
        return Message(self.role, self.content, self.name, calls, self.tool_call_id)


class Function(Closed):
    """A function that a model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Closed):
    """What a model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(Closed):
    """Which function to call."""

    name: str


class ToolChoice(Closed):
    """The tool that has to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchema(Closed):
    """The schema of an answer."""

    name: str = ""
    description: str = ""
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool = Field(default=True, description="It is strict here, whatever this says.")


class ResponseFormat(Closed):
    """OpenAI's way to ask for a form."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(default=None, description="Has to be there for type json_schema.")


class StructuredOutputs(Closed):
    """vLLM's way to ask for a form: one of these."""

    json_: Annotated[Any, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None
    json_object: bool = False


class StreamOptions(Closed):
    """What a stream says beside the answer."""

    include_usage: bool = Field(default=False, description="A last chunk without choices has the usage.")
    continuous_usage_stats: bool = Field(default=False, description="Each chunk has the usage so far.")
    include_obfuscation: bool = Field(default=False, description="OpenAI's padding; there is none here.")


class Asked(Closed):
    """What chat and completions have in common."""

    HARMLESS = HARMLESS

    model: ModelName
    stream: bool = Field(default=False, description="Whether the answer comes as events, while it is written.")
    stream_options: StreamOptions | None = Field(default=None, description="With stream: true only.")
    n: int = Field(default=1, ge=1, le=MOST_CHOICES, description="Answers to each prompt.")
    temperature: float = _ranged("temperature", 1.0, description="0 always takes the likeliest token.")
    top_p: float = _ranged("top_p", 1.0, description="Draws from the likeliest tokens that together have this share.")
    top_k: int = _ranged("top_k", 0, ge=-1, description="Draws from so many of the likeliest tokens; 0 or -1: all.")
    min_p: float = _ranged("min_p", 0.0, description="Least probability of a token, as a share of the likeliest one's.")
    repetition_penalty: float = _ranged("repetition_penalty", 1.0, description="Over prompt and answer; 1 is none.")
    presence_penalty: float = _ranged(
        "presence_penalty", 0.0, description="Over the answer, once for each token in it."
    )
    frequency_penalty: float = _ranged(
        "frequency_penalty", 0.0, description="Over the answer, each time a token comes."
    )
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[float, Field(ge=-BIAS, le=BIAS)]],
        Field(
            max_length=COUNTS["logit_bias"],
            description="By token id, what is added to its logit.",
            json_schema_extra={"additionalProperties": False},
        ),
    ] = Field(default_factory=dict)
    max_tokens: int | None = _ranged("max_tokens")
    min_tokens: int = _ranged(
        "min_tokens", 0, description="Before them neither an end token nor a stop string ends it."
    )
    ignore_eos: bool = Field(default=False, description="Whether it goes on behind an end token.")
    seed: int | None = _ranged("seed", description="The same seed gives the same answer. Drawn when absent.")
    stop: Annotated[Texts, Field(max_length=COUNTS["stop"], description="Texts that end the answer; not in it.")] = (
        Field(default_factory=list)
    )
    stop_token_ids: Annotated[
        list[Annotated[int, Field(ge=0, le=TOKEN_ID)]], Field(max_length=COUNTS["stop_token_ids"])
    ] = Field(default_factory=list)
    structured_outputs: StructuredOutputs | None = Field(default=None, description=f"vLLM's spelling. {ONE_FORM}")
    guided_json: Any = Field(default=None, description=f"A JSON schema that the answer has to fit. {ONE_FORM}")
    guided_regex: str | None = Field(default=None, description=f"A regular expression for the whole answer. {ONE_FORM}")
    guided_choice: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description=f"The answer is one of these texts. {ONE_FORM}"
    )
    guided_grammar: str | None = Field(default=None, description=f"A grammar in Lark's syntax or GBNF. {ONE_FORM}")
    regex: str | None = Field(default=None, description=f"SGLang's name. {PASSED_OVER}")
    ebnf: str | None = Field(default=None, description=f"SGLang's name. {PASSED_OVER}")

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options goes with stream: true only.", param="stream_options")
        return self

    def sampling(self, seed: int, **more: Any) -> Sampling:
        """The same for all answers but the seed."""
        found = Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple((int(i), bias) for i, bias in self.logit_bias.items()),
            min_tokens=self.min_tokens,
            seed=seed,
            stop=tuple(text for text in self.stop if text),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            structure=self.structure(),
            **{"max_tokens": self.max_tokens} | more,
        )
        found.check()
        return found

    def seeds(self, count: int) -> list[int]:
        """One for each choice, so that a seed gives the same choices again."""
        first = secrets.randbits(63) if self.seed is None else self.seed
        return [first, *((first + i) % 2**64 for i in range(1, count))]

    def structure(self) -> Structure | None:
        """The form that was asked for in one of its spellings; raises BadRequest when there are several."""
        found = self._structures()
        if len(found) > 1:
            raise BadRequest(
                f"{' and '.join(found)} each ask for a form of the answer, which can have only one.",
                param=list(found)[-1],
            )
        return next(iter(found.values()), None)

    def _structures(self) -> dict[str, Structure]:
        own = self.structured_outputs
        asked = {
            "guided_json": ("json_schema", self.guided_json),
            "guided_regex": ("regex", self.guided_regex),
            "guided_choice": ("choice", self.guided_choice),
            "guided_grammar": ("grammar", self.guided_grammar),
        }
        if own is None:
            asked |= {"regex": ("regex", self.regex), "ebnf": ("grammar", self.ebnf)}
        else:
            asked |= {
                "structured_outputs.json": ("json_schema", own.json_),
                "structured_outputs.regex": ("regex", own.regex),
                "structured_outputs.choice": ("choice", own.choice),
                "structured_outputs.grammar": ("grammar", own.grammar),
                "structured_outputs.json_object": ("json_object", "" if own.json_object else None),
            }
        return {
            param: Structure(kind, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            for param, (kind, value) in asked.items()
            if value is not None
        }


class ChatCompletion(Asked):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(
        min_length=1, description="The conversation; the last message says something, or is a tool's."
    )
    max_tokens: int | None = _ranged(
        "max_tokens", ge=1, description="Of the answer. When absent, as many as the model has room for."
    )
    max_completion_tokens: int | None = _ranged(
        "max_tokens", ge=1, description="OpenAI's newer name of max_tokens; this one counts if both are there."
    )
    logprobs: bool = Field(default=False, description="Whether each token comes with its log-probability.")
    top_logprobs: int | None = _ranged("logprobs", description="And with so many others. With logprobs: true only.")
    response_format: ResponseFormat | None = Field(default=None, description=f"OpenAI's spelling. {ONE_FORM}")
    tools: list[Tool] = Field(default_factory=list, description="What the model may call.")
    tool_choice: Literal["none", "auto", "required"] | ToolChoice = Field(
        default="auto",
        description="required: it has to call one of the tools; an object: that one, which has to be in tools. "
        "Such an answer can have no other form.",
    )
    parallel_tool_calls: bool = Field(default=True, description="false: the answer ends behind its first call.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="For the model's chat template, as enable_thinking."
    )
    add_generation_prompt: bool = Field(default=True, description="false goes with continue_final_message: true only.")
    continue_final_message: bool = Field(
        default=False, description="The last message is the assistant's, and the answer goes on in it."
    )

    def requests(self, owner: str) -> list[ChatRequest]:
        """One for each choice; raises BadRequest for what does not go together."""
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("top_logprobs goes with logprobs: true only.", param="top_logprobs")
        if not (self.add_generation_prompt or self.continue_final_message):
            raise BadRequest(
                "add_generation_prompt: false goes with continue_final_message: true only.",
                param="add_generation_prompt",
            )
        must_call = self._must_call()
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return [
            ChatRequest(
                self.model,
                tuple(message.message() for message in self.messages),
                self.sampling(seed, max_tokens=most, logprobs=(self.top_logprobs or 0) if self.logprobs else None),
                owner=owner,
                tools=() if self.tool_choice == "none" else tuple(t.model_dump(exclude_none=True) for t in self.tools),
                must_call=must_call,
                parallel_tool_calls=self.parallel_tool_calls,
                template_kwargs=self.chat_template_kwargs,
                continue_final_message=self.continue_final_message,
            )
            for seed in self.seeds(self.n)
        ]

    def _must_call(self) -> tuple[str, ...]:
        """The functions of which the answer has to call one."""
        if self.tool_choice in ("none", "auto"):
            return ()
        names = tuple(dict.fromkeys(tool.function.name for tool in self.tools))
        if isinstance(self.tool_choice, ToolChoice):
            names = tuple(name for name in names if name == self.tool_choice.function.name)
        if not names:
            raise BadRequest("tool_choice asks for a call of a tool that is not in tools.", param="tool_choice")
        if self.structure() is not None:
            raise BadRequest("An answer that has to be a call can have no other form.", param="tool_choice")
        return names

    def _structures(self) -> dict[str, Structure]:
        found, form = super()._structures(), self.response_format
        if form is not None and form.type == "json_object":
            found["response_format"] = Structure("json_object")
        if form is not None and form.type == "json_schema":
            if form.json_schema is None:
                raise BadRequest("json_schema is missing.", param="response_format.json_schema")
            schema = json.dumps(form.json_schema.schema_, ensure_ascii=False)
            found["response_format"] = Structure("json_schema", schema)
        return found


class Completion(Asked):
    """POST /v1/completions."""

    prompt: Annotated[
        Prompts,
        WithJsonSchema(_prompts_schema(MOST_ANSWERS)),
        Field(description=f"Texts or their token ids. All answers to all prompts together: {MOST_ANSWERS} at most."),
    ]
    max_tokens: int = _ranged("max_tokens", COMPLETION_TOKENS)
    logprobs: int | None = _ranged(
        "logprobs", description="Log-probabilities of each token and of so many others; 0: of the token only."
    )
    echo: bool = Field(default=False, description="Whether the prompt comes before the answer.")
    best_of: int | None = Field(
        default=None,
        ge=1,
        le=MOST_CHOICES,
        description="So many answers are written, and the n likeliest come. At least n; streams cannot have more than n.",
    )

    @property
    def candidates(self) -> int:
        """Answers to each prompt."""
        return self.best_of or self.n

    def requests(self, owner: str) -> list[ChatRequest]:
        """All candidates of the first prompt, then of the next; raises BadRequest for what does not go together."""
        if self.candidates < self.n:
            raise BadRequest("best_of has to be at least n.", param="best_of")
        if self.stream and self.candidates > self.n:
            raise BadRequest("The best of several answers cannot be streamed.", param="best_of")
        if self.candidates * len(self.prompt) > MOST_ANSWERS:
            raise BadRequest(f"One request may have {MOST_ANSWERS} answers, all prompts together.", param="prompt")
        seeds = self.seeds(self.candidates)
        return [
            ChatRequest(self.model, (), self.sampling(seed, **self._scores(prompt)), owner=owner, prompt=prompt)
            for prompt in self.prompt
            for seed in seeds
        ]

    def _scores(self, prompt: Prompt) -> dict[str, Any]:
        """What has to be told of each token."""
        found: dict[str, Any] = {"logprobs": self.logprobs}
        if self.logprobs is None and self.candidates > self.n:
            found["logprobs"] = 0  # the best one is the likeliest
        if self.echo and (self.logprobs is not None or not isinstance(prompt, str)):
            found["prompt_logprobs"] = self.logprobs or 0  # of ids they bring the text, too
        return found


class Embedding(Closed):
    """POST /v1/embeddings."""

    HARMLESS = HARMLESS

    model: ModelName
    input: Annotated[
        Prompts,
        Field(
            max_length=MOST_INPUTS, description="Texts or their token ids; none of them may be too long for the model."
        ),
        WithJsonSchema(_prompts_schema(MOST_INPUTS)),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(
        default=None, ge=1, description="The first so many numbers; no more than the model has."
    )

    def request(self, owner: str) -> EmbedRequest:
        """One for all inputs."""
        return EmbedRequest(self.model, tuple(self.input), self.dimensions, owner=owner)


def check(kind: type[M], raw: Mapping[str, Any]) -> M:
    """The body as what it should be.

    Raises:
        BadRequest: `param` names the first field that is wrong; the message never says what was in it.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = _param(first["loc"])
        if first["type"] == "extra_forbidden":
            raise BadRequest(f"The field {param} is not supported here. Leave it out.", param=param) from None
        what = first["msg"].removeprefix("Value error, ")
        raise BadRequest(f"{param}: {what}.", param=param) from None


def _param(where: tuple[int | str, ...]) -> str:
    """As OpenAI writes it: messages[0].content. What pydantic says of the sides of a union is left out."""
    found = ""
    for part in where:
        if isinstance(part, int):
            found += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "dict", "list", "int"):
            found += f".{part}" if found else part
        elif not found:
            found = repr(part[:64])  # an unknown field with a strange name
    return found or "body"
