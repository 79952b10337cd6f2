"""A chat of the terminal as a file: written as OpenAI's messages, read from those or from FastChat's conversations."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from broker.errors import BadRequest
from broker.messages import Message

MOST_BYTES = 50_000_000
ROLES = ("system", "user", "assistant")


def find(name: str) -> Path:
    """The path of a file to load; `.json` may be left out, as in FastChat."""
    path = Path(name).expanduser()
    return path if path.exists() or path.suffix else path.with_suffix(".json")


def place(name: str) -> Path:
    """The path of a file to save; `.json` is added where there is no other ending, as in FastChat."""
    path = Path(name).expanduser()
    return path if path.suffix else path.with_suffix(".json")


def save(path: Path, model: str, messages: Sequence[Message]) -> None:
    """Write a chat; it can be sent to `/v1/chat/completions` as it is. Raises BadRequest when it cannot be written."""
    text = json.dumps({"model": model, "messages": [m.to_map() for m in messages]}, ensure_ascii=False, indent=1)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, path)  # a full disk leaves the old one as it was
    except OSError as error:
        raise BadRequest(f"{path} cannot be written: {error.strerror}.") from None


def load(path: Path) -> tuple[Message, ...]:
    """The messages of a file.

    Raises:
        BadRequest: there is no such file, or it is none of a chat.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadRequest(f"{path} is larger than a chat can be.")
        raw = json.loads(path.read_text(encoding="utf-8"))
        messages = _fastchat(raw) if isinstance(raw, dict) and "roles" in raw else _openai(raw)
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise BadRequest(
            f"{path} is no chat: neither OpenAI's messages as JSON nor a conversation of FastChat."
        ) from None
    turns = [m.role for m in messages if m.role != "system"]
    if turns != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        raise BadRequest(f"{path} is no chat in turns: user and assistant have to take turns, and the user begins.")
    return messages


def _openai(raw: Any) -> tuple[Message, ...]:
    found = []
    for one in raw["messages"] if isinstance(raw, dict) else raw:
        role = {"developer": "system"}.get(one["role"], one["role"])
        if role not in ROLES or one.get("tool_calls"):
            raise ValueError(role)
        found.append(Message(role, _text(one["content"])))
    return tuple(found)


def _text(content: Any) -> str:
    """A message's text: as it is, in OpenAI's parts, or in FastChat's pair of text and pictures."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part["text"] for part in content)


def _fastchat(raw: dict[str, Any]) -> tuple[Message, ...]:
    """`Conversation.dict()`: pairs of role and text, of which the template's examples stand before `offset`."""
    roles = dict(zip(raw["roles"], ("user", "assistant"), strict=False))
    pairs = raw["messages"][raw.get("offset", 0) :]
    said = [Message(roles[role], text if isinstance(text, str) else text[0]) for role, text in pairs if text]
    system = raw.get("system_message") or ""
    return (*([Message("system", system)] if system else []), *said)
