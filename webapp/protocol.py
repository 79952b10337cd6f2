"""What a page may send, as closed schemas: an unknown field is refused by its name, `null` means absent."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, TypeAdapter, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from broker.conversations import parts_of, shown_to_model
from broker.errors import BadRequest
from broker.messages import Message, Sampling, Structure

FILES = 50  # that may come with one message

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{26}$")]
Model = Annotated[str, Field(max_length=128)]


class Closed(BaseModel):
    """What comes from outside: no unknown fields, no types turned into others, no null."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    HARMLESS: ClassVar[tuple[str, ...]] = ()  # fields that are accepted and do nothing

    @model_validator(mode="before")
    @classmethod
    def _leave_what_says_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None and name not in cls.HARMLESS}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With what the validator above lets pass."""
        reference = handler(core)
        found = handler.resolve_ref_schema(reference)
        fields, needed = found.setdefault("properties", {}), found.get("required", ())
        for name in fields.keys() - set(needed):
            fields[name] = _or_null(fields[name])
        fields |= {name: {"description": "Accepted, and does nothing.", "x-harmless": True} for name in cls.HARMLESS}
        return reference


class Form(Closed):
    """A form that the answer must have."""

    kind: Literal["json_schema", "json_object", "regex", "choice", "grammar"]
    value: str = ""


class Settings(Closed):
    """The page's controls. What is absent is as `broker.messages.Sampling` has it, which also knows the other ranges."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    min_tokens: int | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: list[str] | None = None
    ignore_eos: bool | None = None
    structure: Form | None = None
    thinking: bool | None = None  # for models whose template knows enable_thinking
    system: str | None = None  # what comes before the conversation; "": nothing, also where the model has a default

    def sampling(self, seed: int) -> Sampling:
        """For the engine; `seed` unless the page sent one."""
        more = {
            "stop": tuple(self.stop or ()),
            "structure": None if self.structure is None else Structure(self.structure.kind, self.structure.value),
        }
        given = self.model_dump(exclude_none=True, exclude={"system", "thinking", *more})
        return Sampling(**{"seed": seed} | given | more)

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """For the chat template."""
        return {} if self.thinking is None else {"enable_thinking": self.thinking}

    @property
    def opening(self) -> tuple[Message, ...]:
        """What every prompt begins with."""
        return (Message("system", self.system),) if self.system and self.system.strip() else ()

    @property
    def stored(self) -> dict[str, Any]:
        """As they are kept: what is absent stays absent."""
        return self.model_dump(exclude_none=True)


class File(Closed):
    """A text file that comes with a message."""

    name: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f]+$")]
    text: str


class Said(Closed):
    """What somebody said, with their files."""

    text: str = ""
    files: Annotated[list[File], Field(max_length=FILES)] = Field(default_factory=list)

    @property
    def attached(self) -> list[tuple[str, str]]:
        """The files' names and texts."""
        return [(file.name, file.text) for file in self.files]

    @property
    def seen(self) -> str:
        """What a model sees of it."""
        return shown_to_model(parts_of(self.text, self.attached))


class Earlier(Said):
    """A message of a conversation that is not stored."""

    role: Literal["user", "assistant"]


class Incoming(Closed):
    """Any message of a page."""

    type: str

    def tags(self) -> dict[str, str]:
        """What an error about this message carries, so that the page knows which one it was."""
        return {name: value for name in ("ref", "request_id", "battle") if (value := getattr(self, name, ""))}


class Asking(Incoming):
    """What wants an answer. `ref` comes back with it; the same one again, after a lost connection, is the same request."""

    model: Model
    ref: Id | Literal[""] = ""
    settings: Settings = Field(default_factory=Settings)


class Ask(Asking, Said):
    """A new message of the user's. Without a conversation a new one begins, or with `temporary` none at all."""

    type: Literal["ask"]
    conversation: Id | Literal[""] = ""
    parent: Id | Literal[""] = ""
    temporary: bool = False
    history: list[Earlier] = Field(default_factory=list)  # temporary: what was said before
    begun: str = ""  # temporary: the answer that goes on


class Regenerate(Asking):
    """Another answer to a user message that is there already."""

    type: Literal["regenerate"]
    conversation: Id
    message: Id


class Continue(Asking):
    """An answer that goes on where another one ended, as a version beside it."""

    type: Literal["continue"]
    conversation: Id
    message: Id  # the answer


class Resume(Incoming):
    """The frames of an answer from a number on."""

    type: Literal["resume"]
    request_id: Id
    from_: Annotated[int, Field(alias="from", ge=0, lt=2**31)] = 0
    epoch: Annotated[int, Field(ge=0, lt=2**53)] = 0  # of the frame before that number; 0: not known


class Stop(Incoming):
    """End an answer."""

    type: Literal["stop"]
    request_id: Id


class Round(Incoming):
    """What wants both sides of a battle to answer. `token` is in the arena's pages."""

    token: Annotated[str, Field(max_length=128)]
    ref: Id | Literal[""] = ""
    settings: Settings = Field(default_factory=Settings)  # of a named round; in a blind one each model has its own


class Battle(Round):
    """A question to both; without a battle a new round begins."""

    type: Literal["battle"]
    text: str
    battle: Id | Literal[""] = ""
    kind: Literal["blind", "named"] = "blind"
    models: Annotated[list[Model], Field(max_length=2)] = Field(default_factory=list)  # named, of a new round


class BattleAgain(Round):
    """The last question, to be answered again by both."""

    type: Literal["battle-again"]
    battle: Id


class BattleStop(Incoming):
    """End both answers; where both have come, show what is left of them at once."""

    type: Literal["battle-stop"]
    battle: Id


Taken = Ask | Regenerate | Continue | Resume | Stop | Battle | BattleAgain | BattleStop
_ANY: TypeAdapter[Taken] = TypeAdapter(Annotated[Taken, Field(discriminator="type")])


def parse(raw: Any) -> Taken:
    """The message in `raw`.

    Raises:
        BadRequest: naming the field and what is wrong with it, and never what was in it.
    """
    try:
        return _ANY.validate_python(raw)
    except ValidationError as error:
        raise _refusal(error, 1) from None


def parse_settings(raw: Any) -> Settings:
    """The settings in `raw`, with which an ask would be taken.

    Raises:
        BadRequest: as `parse`.
    """
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        raise _refusal(error, 0) from None
    settings.sampling(0).check()
    return settings


def _refusal(error: ValidationError, depth: int) -> BadRequest:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"][depth:]) or "message"
    if first["type"] == "extra_forbidden":
        return BadRequest(f"The field {where} is not supported here.")
    return BadRequest(f"{where}: {first['msg']}.")


def _or_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    about = {key: schema[key] for key in ("default", "description") if schema.get(key) is not None}
    kind = {key: value for key, value in schema.items() if key not in ("default", "description", "title")}
    sides = kind.get("anyOf", [kind] if kind else [])
    if not sides or {"type": "null"} in sides:
        return kind | about
    return {"anyOf": [*sides, {"type": "null"}]} | about
