"""What other programs' files hold, as conversations that can be kept.

Understood are our own JSON (one conversation, or all), messages in OpenAI's form, ChatGPT's conversations.json, whose
branches stay branches, and FastChat's logs, a record a line, of which the last one of each conversation counts and a
battle gives two. Nothing is guessed: what is of a wrong shape is a BadRequest that says where it stands.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from broker.conversations import title_of
from broker.errors import BadRequest
from broker.fields import a_list, a_text, a_time, an_object, clean, is_number, now, wrong

BYTES = 32 * 1024 * 1024  # of a file
MOST = 10_000  # conversations in it
MOST_MESSAGES = 5_000  # of one conversation
ROLES = ("user", "assistant")
KINDS = ("text", "reasoning", "tool", "file")
TAGS = 20
LONGEST_TAG, LONGEST_NAME = 40, 200
FASTCHAT = ("chat", "upvote", "downvote", "flag")  # records with one state; every other one has two


@dataclass(frozen=True, slots=True)
class Imported:
    """A conversation from a file. Messages have the file's ids."""

    title: str
    created: int  # milliseconds since 1970
    updated: int
    leaf: str
    messages: dict[str, dict[str, Any]]  # id -> as stored; parents come before their children
    archived: bool = False
    tags: tuple[str, ...] = ()
    system: str = ""  # the system prompt
    key: str = field(default="", compare=False)  # of a log's conversation, which has a record for each of its turns


def parse(raw: bytes) -> list[Imported]:
    """The conversations in a file, those without a message left out.

    Raises:
        BadRequest: it is no such file, or something in it is wrong.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"The file is not text: byte {error.start} is not UTF-8.") from None
    found: dict[object, Imported] = {}
    for where, record in _records(text):
        if not isinstance(record, dict):
            raise wrong(where, "an object is expected")
        for one in _conversations(record, where):
            if one.messages:
                found[one.key or object()] = one
        if len(found) > MOST:
            raise BadRequest(f"The file has more than {MOST} conversations. Split it.")
    if not found:
        raise BadRequest("There is no conversation in this file.")
    return list(found.values())


def _records(text: str) -> Iterator[tuple[str, Any]]:
    """Each record of a file and where it stands: of a JSON list, of our own file, or one a line."""
    try:
        whole = json.loads(text)
    except RecursionError:
        raise BadRequest("The file is nested too deep.") from None
    except ValueError as error:
        lines = text.splitlines()
        if not _is_object(lines[0] if lines else ""):
            raise BadRequest(f"The file is not JSON: {error}.") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except (ValueError, RecursionError) as mistake:
                    raise BadRequest(f"line {number}: this is not JSON: {mistake}.") from None
        return
    name = ""
    if isinstance(whole, dict) and "conversations" in whole:
        name, whole = "conversations", a_list(whole, "conversations", "")
    if isinstance(whole, list):
        yield from ((f"{name}[{i}]", record) for i, record in enumerate(whole))
    else:
        yield "", whole


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _conversations(record: dict[str, Any], where: str) -> Iterator[Imported]:
    for name, read in READERS.items():
        if name in record:
            yield from read(record, where)
            return
    raise wrong(where, "this is no conversation of FleetChat's, ChatGPT's or FastChat's")


def _ours(record: dict[str, Any], where: str) -> Iterator[Imported]:
    messages, here = {}, f"{where}.tree"
    for i, raw in enumerate(a_list(record, "tree", where)):
        at = f"{here}[{i}]"
        message = an_object(raw, at)
        messages[a_text(message, "message_id", at)] = _message(
            message, [_part(part, f"{at}.parts[{k}]") for k, part in enumerate(a_list(message, "parts", at))], at
        ) | {"parent": a_text(message, "parent", at, "")}
    yield _imported(record, messages, a_text(record, "leaf", where, ""), where)


def _openai(record: dict[str, Any], where: str) -> Iterator[Imported]:
    messages: dict[str, dict[str, Any]] = {}
    system, parent = "", ""
    for i, raw in enumerate(a_list(record, "messages", where)):
        at = f"{where}.messages[{i}]"
        message = an_object(raw, at)
        content = _content(message.get("content"), f"{at}.content")
        if message.get("role") in ("system", "developer"):
            system = content
        elif message.get("role") in ROLES and content:
            messages[str(i)] = _message(message, _said(content, message.get("reasoning_content")), at) | {
                "parent": parent
            }
            parent = str(i)
    yield _imported(record, messages, parent, where, system=system)


def _chatgpt(record: dict[str, Any], where: str) -> Iterator[Imported]:
    """A tree of nodes, of which many hold nothing that a person has said; their children go to the next one above."""
    nodes = an_object(record.get("mapping"), f"{where}.mapping")
    messages: dict[str, dict[str, Any]] = {}
    above: dict[str, str] = {}
    for name, raw in nodes.items():
        at = f"{where}.mapping[{name[:40]}]"
        node = an_object(raw, at)
        above[name] = a_text(node, "parent", at, "")
        if (message := node.get("message")) is not None and (said := _chatgpt_message(message, f"{at}.message")):
            messages[name] = said

    def kept(name: str) -> str:
        for _ in range(len(above) + 1):
            if not name or name in messages:
                return name
            name = above.get(name, "")
        raise wrong(f"{where}.mapping", "its parents lead in a circle")

    for name, message in messages.items():
        message["parent"] = kept(above[name])
    leaf, archived = kept(a_text(record, "current_node", where, "")), record.get("is_archived") is True
    yield _imported(record, messages, leaf, where, archived=archived, seconds=True)


def _chatgpt_message(raw: Any, where: str) -> dict[str, Any] | None:
    message = an_object(raw, where)
    metadata = an_object(message.get("metadata") or {}, f"{where}.metadata")
    role = an_object(message.get("author"), f"{where}.author").get("role")
    content = an_object(message.get("content"), f"{where}.content")
    if (
        role not in ROLES
        or metadata.get("is_visually_hidden_from_conversation")
        or message.get("recipient") not in (None, "all")
    ):
        return None
    parts = a_list(content, "parts", f"{where}.content", [content.get("text")])
    text = "\n".join(part for part in parts if isinstance(part, str)).strip()
    if content.get("content_type") not in ("text", "multimodal_text", "code") or not text:
        return None
    found = {"role": role, "created": message.get("create_time"), "model": metadata.get("model_slug")}
    return _message(found, _said(clean(text)), where, seconds=True)


def _fastchat(record: dict[str, Any], where: str) -> Iterator[Imported]:
    states = a_list(record, "states", where) if "states" in record else [record["state"]]
    for i, raw in enumerate(states):
        at = f"{where}.states[{i}]" if "states" in record else f"{where}.state"
        state = an_object(raw, at)
        roles = [role for role in a_list(state, "roles", at) if isinstance(role, str)]
        messages: dict[str, dict[str, Any]] = {}
        parent = ""
        said = a_list(state, "messages", at)
        offset = state.get("offset") or 0
        for k, one in enumerate(said[max(0, offset) if isinstance(offset, int) else 0 :]):
            here = f"{at}.messages[{k}]"
            if not isinstance(one, list) or len(one) != 2 or one[0] not in roles[:2]:
                raise wrong(here, "a pair of one of its roles and a text is expected")
            text = one[1][0] if isinstance(one[1], list) and one[1] else one[1]  # with a picture: [text, pictures]
            if text is None:
                continue  # the answer was never written
            if not isinstance(text, str):
                raise wrong(here, "a pair of one of its roles and a text is expected")
            found = {"role": ROLES[roles.index(one[0])], "created": record.get("tstamp")}
            if found["role"] == "assistant":
                found["model"] = state.get("model_name") or record.get("model")
            messages[str(k)] = _message(found, _said(clean(text)), here, seconds=True) | {"parent": parent}
            parent = str(k)
        times = {"created": record.get("tstamp"), "updated": record.get("tstamp")}
        system, key = a_text(state, "system_message", at, ""), a_text(state, "conv_id", at, "")
        yield _imported(times, messages, parent, where, system=system, key=key, seconds=True)


READERS: dict[str, Callable[[dict[str, Any], str], Iterator[Imported]]] = {
    "tree": _ours,
    "mapping": _chatgpt,
    "states": _fastchat,
    "state": _fastchat,
    "messages": _openai,
}


def _imported(
    record: dict[str, Any],
    messages: dict[str, dict[str, Any]],
    leaf: str,
    where: str,
    *,
    system: str = "",
    key: str = "",
    archived: bool = False,
    seconds: bool = False,
) -> Imported:
    if len(messages) > MOST_MESSAGES:
        raise wrong(where, f"it has more than {MOST_MESSAGES} messages")
    ordered = _ordered(messages, where)
    names = {"created": "create_time", "updated": "update_time"} if "mapping" in record else {}
    times = [message["created"] for message in ordered.values()]
    created = a_time(record.get(names.get("created", "created")), seconds) or min(times, default=0)
    updated = a_time(record.get(names.get("updated", "updated")), seconds) or max(times, default=created)
    first = next((_first_words(m) for m in ordered.values() if m["role"] == "user"), "")
    title = title_of(a_text(record, "title", where, "")) or first or "Untitled"
    tags = [tag[:LONGEST_TAG] for tag in a_list(record, "tags", where, []) if isinstance(tag, str) and tag.strip()]
    if leaf not in ordered:
        leaf = next(reversed(ordered), "")
    archived = archived or record.get("archived") is True
    tags = [clean(tag) for tag in tags[:TAGS]]
    return Imported(title, created, max(updated, created), leaf, ordered, archived, tuple(tags), system, key)


def _ordered(messages: dict[str, dict[str, Any]], where: str) -> dict[str, dict[str, Any]]:
    """Parents before children; raises when a parent is missing or is among its own descendants."""
    children: dict[str, list[str]] = {}
    for name, message in messages.items():
        if message["parent"] and message["parent"] not in messages:
            raise wrong(where, f"the message {name[:40]!r} has a parent that is not there")
        children.setdefault(message["parent"], []).append(name)
    found, waiting = list[str](), children.get("", [])[::-1]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])[::-1]
    if len(found) < len(messages):
        raise wrong(where, "its parents lead in a circle")
    return {name: messages[name] for name in found}


def _message(raw: dict[str, Any], parts: list[dict[str, Any]], where: str, *, seconds: bool = False) -> dict[str, Any]:
    """A message as it is stored, but for its parent."""
    if raw.get("role") not in ROLES:
        raise wrong(f"{where}.role", f"one of {', '.join(ROLES)} is expected")
    message = {"role": raw["role"], "parts": parts, "created": a_time(raw.get("created"), seconds) or now()}
    for name in ("model", "reason", "rating", "note"):
        if isinstance(raw.get(name), str) and raw[name]:
            message[name] = clean(raw[name][: LONGEST_NAME * (10 if name == "note" else 1)])
    for name in ("usage", "timings"):
        if isinstance(raw.get(name), dict):
            message[name] = {k[:40]: v for k, v in raw[name].items() if is_number(v)}
    return message


def _part(raw: Any, where: str) -> dict[str, Any]:
    part = an_object(raw, where)
    if part.get("kind") not in KINDS:
        raise wrong(f"{where}.kind", f"one of {', '.join(KINDS)} is expected")
    found = {"kind": part["kind"], "text": a_text(part, "text", where)}
    named = "name" in part or part["kind"] == "file"
    return found | ({"name": a_text(part, "name", where)[:LONGEST_NAME]} if named else {})


def _said(text: str, reasoning: Any = None) -> list[dict[str, Any]]:
    thoughts = [{"kind": "reasoning", "text": clean(reasoning)}] if isinstance(reasoning, str) and reasoning else []
    return [*thoughts, {"kind": "text", "text": text}]


def _content(raw: Any, where: str) -> str:
    """OpenAI's content: text, nothing, or parts of which the texts count."""
    if raw is None or isinstance(raw, str):
        return clean(raw or "")
    if not isinstance(raw, list):
        raise wrong(where, "text is expected")
    texts = [part.get("text") for part in raw if isinstance(part, dict)]
    return clean("\n".join(text for text in texts if isinstance(text, str)))


def _first_words(message: dict[str, Any]) -> str:
    return title_of("".join(part["text"] for part in message["parts"] if part["kind"] == "text"))
