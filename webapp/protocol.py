"""What a page may send, as closed schemas: an unknown field is refused by its name, `null` means absent."""

from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, TypeAdapter, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from broker.errors import BadRequest
from broker.messages import Sampling

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{26}$")]
Ref = Annotated[str, Field(max_length=64)]


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


class Settings(Closed):
    """The page's controls."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    def sampling(self, seed: int) -> Sampling:
        """For the engine; `seed` unless the page sent one."""
        seed = seed if self.seed is None else self.seed
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens, seed=seed)


class Incoming(Closed):
    """Any message of a page."""

    type: str

    def tags(self) -> dict[str, str]:
        """What an error about this message carries, so that the page knows which one it was."""
        return {name: value for name in ("ref", "request_id") if (value := getattr(self, name, ""))}


class Ask(Incoming):
    """A new message of the user's. Without a conversation a new one begins."""

    type: Literal["ask"]
    model: Annotated[str, Field(max_length=128)]
    text: str
    ref: Ref = ""
    conversation: Id | Literal[""] = ""
    parent: Id | Literal[""] = ""
    settings: Settings = Field(default_factory=Settings)


class Regenerate(Incoming):
    """Another answer to a user message that is there already."""

    type: Literal["regenerate"]
    model: Annotated[str, Field(max_length=128)]
    conversation: Id
    message: Id
    ref: Ref = ""
    settings: Settings = Field(default_factory=Settings)


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


_ANY: TypeAdapter[Ask | Regenerate | Resume | Stop] = TypeAdapter(
    Annotated[Union[Ask, Regenerate, Resume, Stop], Field(discriminator="type")]  # noqa: UP007
)


def parse(raw: Any) -> Ask | Regenerate | Resume | Stop:
    """The message in `raw`.

    Raises:
        BadRequest: naming the field and what is wrong with it, and never what was in it.
    """
    try:
        return _ANY.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "message"
        if first["type"] == "extra_forbidden":
            raise BadRequest(f"The field {where} is not supported here.") from None
        raise BadRequest(f"{where}: {first['msg']}.") from None


def _or_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    about = {key: schema[key] for key in ("default", "description") if schema.get(key) is not None}
    kind = {key: value for key, value in schema.items() if key not in ("default", "description", "title")}
    sides = kind.get("anyOf", [kind] if kind else [])
    if not sides or {"type": "null"} in sides:
        return kind | about
    return {"anyOf": [*sides, {"type": "null"}]} | about
