"""Battles: rounds in which two models answer the same questions, and the vote that ends one.

A round lies in `battle:ID` for a day. Its turns are begun here and answered like any request (`broker.chat.ask` with a
`Bout`); the script that writes an answer's last frame writes it into the round, too, so no vote needs a living web
process. A vote is one script: it checks, writes to `votes` and `voted`, and shows the names. What a blind round's
models are called leaves this module only through `Battle.models`, and `Battle.shown` guards it.
"""

import asyncio
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker import features, keys, moderation
from broker.connection import Broker, redis_errors
from broker.errors import (
    AnswerRefused,
    AnswerUnchecked,
    BadRequest,
    Conflict,
    FleetError,
    NoSuchBattle,
    PromptTooLarge,
    RoundOver,
    RoundUnderWay,
    StorageFull,
    VotesUsed,
)
from broker.messages import Message, new_id, unpack
from broker.rules import Rules
from broker.secret import salted
from broker.votes import WINNERS, compress

SIDES = ("a", "b")
DONE = ("stop", "length", "tool_calls", "content_filter")  # reasons of an answer that can be compared


@dataclass(frozen=True, slots=True)
class SideAnswer:
    """What one side said in one turn."""

    text: str
    reasoning: str = ""
    reason: str = ""
    usage: Mapping[str, Any] | None = None
    timings: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None

    @property
    def done(self) -> bool:
        """Whether it came to its end by itself."""
        return self.reason in DONE and self.error is None

    @classmethod
    def decode(cls, data: bytes) -> "SideAnswer":
        raw = unpack(data)
        return cls(**{name: raw[name] for name in cls.__dataclass_fields__ if raw.get(name) is not None})


@dataclass(frozen=True, slots=True)
class BattleTurn:
    """A question and its two answers; None for one that has not come to its end."""

    text: str
    a: SideAnswer | None
    b: SideAnswer | None
    requests: tuple[str, str]  # the ids of what answers it
    unchecked: bool = False  # its answers wait for moderation

    @property
    def seen(self) -> tuple[SideAnswer | None, SideAnswer | None]:
        """Its answers, as far as anybody may see them: none before they are checked."""
        return (None, None) if self.unchecked else (self.a, self.b)


@dataclass(frozen=True, slots=True)
class Battle:
    """A round."""

    battle_id: str
    owner: str
    kind: str  # blind or named
    models: tuple[str, str]
    probability: float  # with which this pair was drawn
    created: int  # milliseconds since 1970
    state: str  # open, void or voted
    revealed: bool  # its owner knows the names
    winner: str  # a, b, tie or bad; "" without a vote
    why: str  # it was ended, for people; "" where a side has failed
    revision: int
    turns: tuple[BattleTurn, ...]

    @property
    def votable(self) -> bool:
        """Whether a vote would be taken now."""
        last = self.turns[-1] if self.turns else None
        return self.state == "open" and last is not None and all(side is not None and side.done for side in last.seen)

    @property
    def names(self) -> tuple[str, str]:
        """The models' names, for who may know them; else nothing."""
        return self.models if self.revealed else ("", "")

    def history(self, side: str, turns: int) -> tuple[Message, ...]:
        """What a side's model sees of the first so many turns: one that came to nothing is left out."""
        said: list[Message] = []
        for turn in self.turns[:turns]:
            answer = turn.seen[SIDES.index(side)]
            if answer is not None and answer.text:
                said += [Message("user", turn.text), Message("assistant", answer.text)]
        return tuple(said)

    def shown(self) -> dict[str, Any]:
        """What its owner's page may see: of a blind round nothing but the texts until it is over."""
        return {
            "battle": self.battle_id,
            "kind": self.kind,
            "state": self.state,
            "revealed": self.revealed,
            "models": list(self.names),
            "winner": self.winner,
            "why": self.why,
            "vote": self.votable,
            "turns": [self._shown(turn) for turn in self.turns],
        }

    def _shown(self, turn: BattleTurn) -> dict[str, Any]:
        """A turn. While it is blind, no side is seen to have ended before the other, or to have been ahead when both were stopped."""
        (a, b), shortest = turn.seen, None
        if not self.revealed:
            a, b = (a, b) if a and b else (None, None)
            if a and b and not (a.done and b.done):
                shortest = min(len(a.text), len(b.text))
        return {"text": turn.text, "a": self._side(a, shortest), "b": self._side(b, shortest)}

    def snapshot(self) -> list[dict[str, Any]]:
        """What a link to it shows: questions, answers with their `side` and, once known, `model`, and at last who won."""
        said: list[dict[str, Any]] = []
        for turn, shown in zip(self.turns, self.shown()["turns"], strict=True):
            said.append({"role": "user", "parts": [{"kind": "text", "text": turn.text}]})
            for side, model in zip(SIDES, self.names, strict=True):
                text = (shown[side] or {}).get("text", "")
                said.append(
                    {"role": "assistant", "side": side, "model": model, "parts": [{"kind": "text", "text": text}]}
                )
        return [*said, {"role": "verdict", "winner": self.winner, "parts": []}]

    def _side(self, answer: SideAnswer | None, length: int | None) -> dict[str, Any] | None:
        if answer is None:
            return None
        plain: dict[str, Any] = {"text": answer.text[:length], "done": answer.done and length is None}
        more = {name: getattr(answer, name) for name in ("reasoning", "reason", "usage", "timings")}
        return plain | {name: value for name, value in more.items() if self.revealed and value}


@dataclass(frozen=True, slots=True)
class Started:
    """A turn that waits for its two requests to be enqueued."""

    battle_id: str
    turn: int
    requests: tuple[str, str]


async def load(broker: Broker, battle_id: str, owner: str) -> Battle:
    """A round of this owner's.

    Raises:
        NoSuchBattle: it does not exist any more, or belongs to somebody else.
    """
    async with redis_errors():
        record = await broker.redis.hgetall(keys.battle(battle_id))
    if record.get(b"owner", b"").decode() != owner or not owner:
        raise NoSuchBattle
    return _battle(battle_id, record)


def check(rules: Rules, text: str) -> None:
    """Raises BadRequest or PromptTooLarge when it is no question that a battle takes."""
    if not text.strip():
        raise BadRequest("The message is empty. Write something and send it again.", param="text")
    check_length(rules, text)


def check_length(rules: Rules, text: str, *, system: bool = False) -> None:
    """Raises PromptTooLarge when it is more than is asked, and checked, in a battle."""
    size, limit = len(text), rules.battle.characters
    if size > limit and system:
        raise PromptTooLarge(f"The system prompt has {size} characters, and a battle takes {limit}. Shorten it.")
    if size > limit:
        raise PromptTooLarge(f"The message has {size} characters, and a battle takes {limit}. Shorten it.")


async def begin(
    broker: Broker,
    rules: Rules,
    owner: str,
    text: str,
    *,
    battle_id: str = "",
    kind: str = "blind",
    models: tuple[str, str] = ("", ""),
    probability: float = 0.0,
) -> Started:
    """A new turn; without `battle_id` of a new round between these models.

    Raises:
        BadRequest, PromptTooLarge, NoSuchBattle, RoundOver, RoundUnderWay, StorageFull
    """
    check(rules, text)
    fresh = [] if battle_id else [kind, *models, f"{probability:.9g}"]
    return await _bout(broker, rules, battle_id or new_id(), owner, text, fresh)


async def again(broker: Broker, rules: Rules, owner: str, battle_id: str) -> Started:
    """The last turn, to be answered again by both.

    Raises:
        NoSuchBattle, RoundOver, RoundUnderWay
        BadRequest: it has no turn.
    """
    return await _bout(broker, rules, battle_id, owner, "", [])


async def _bout(broker: Broker, rules: Rules, battle_id: str, owner: str, text: str, fresh: Sequence[str]) -> Started:
    if broker.nearly_full:
        raise StorageFull
    requests = (new_id(), new_id())
    async with redis_errors():
        settings = rules.battle.turns, int(rules.moderation.on)
        status, *turn = await broker.scripts.bout(args=[battle_id, owner, text, *requests, *settings, *fresh])
    if status == -4:
        raise RoundOver(f"A round has {rules.battle.turns} turns at most. Vote, or begin a new one.")
    if status == -5:
        raise BadRequest("There is nothing to answer again in this round.")
    _check(status)
    return Started(battle_id, turn[0], requests)


async def withdraw(broker: Broker, started: Started, owner: str) -> None:
    """Take a turn back whose requests were not both accepted."""
    async with redis_errors():
        await broker.scripts.withdraw(args=[started.battle_id, owner, started.turn, *started.requests])


async def reveal(broker: Broker, battle_id: str, owner: str) -> Battle:
    """Show the names without a vote; one after that is kept apart.

    Raises:
        NoSuchBattle, RoundUnderWay
    """
    async with redis_errors():
        _check(await broker.scripts.reveal(args=[battle_id, owner]))
    return await load(broker, battle_id, owner)


async def void(broker: Broker, battle_id: str, owner: str, why: str) -> None:
    """End an open round without a vote, as when an answer cannot be read to its end."""
    async with redis_errors():
        await broker.scripts.void(args=[battle_id, owner, why])


async def approve(broker: Broker, rules: Rules, started: Started, owner: str) -> FleetError | None:
    """Have a turn's answers checked, as much of them as there is. Without an objection they can be seen and voted on from
    now on; else the round is void, they are forgotten, and what is to be said of it is given."""
    battle = await load(broker, started.battle_id, owner)
    turn = battle.turns[started.turn]
    answers = [side for side in (turn.a, turn.b) if side is not None]
    verdict = await moderation.check(broker, rules, [text for side in answers for text in (side.text, side.reasoning)])
    refusal = (AnswerUnchecked() if verdict.failed else AnswerRefused()) if verdict.flagged else None
    async with redis_errors():
        await broker.scripts.approve(
            args=[started.battle_id, owner, started.turn, *started.requests, str(refusal or "")]
        )
    return refusal


@dataclass(frozen=True, slots=True)
class Voter:
    """Who votes, as salted hashes: nobody can be found by them, and the same one is the same."""

    voter: str  # of the session
    address: str
    network: str

    @classmethod
    def of(cls, salt: bytes, owner: str, address: str) -> "Voter":
        """Of a session at an IP address; what is no address counts as one of its own."""
        return cls(salted(salt, f"session {owner}"), at_address(salt, address), salted(salt, _network(address)))


def at_address(salt: bytes, address: str) -> str:
    """The salted hash of whoever is at an address."""
    return salted(salt, f"address {address}")


async def vote(broker: Broker, rules: Rules, battle_id: str, owner: str, winner: str, voter: Voter) -> Battle:
    """Take a vote; gives the round with its names.

    Raises:
        BadRequest: no such winner.
        NoSuchBattle, RoundOver (also when it is voted on already), RoundUnderWay, VotesUsed
    """
    if winner not in WINNERS:
        raise BadRequest(f"winner: one of {', '.join(WINNERS)}.", param="winner")
    limits = (
        (voter.voter, rules.votes.session),
        (voter.address, rules.votes.address),
        (voter.network, rules.votes.network),
    )
    while True:
        battle = await load(broker, battle_id, owner)
        said = await asyncio.to_thread(_said, battle)
        entry = await asyncio.to_thread(_entry, battle, voter)
        async with redis_errors():
            status, *rest = await broker.scripts.settle(
                args=[battle_id, owner, winner, battle.revision, said, len(limits), *sum(limits, ()), *entry]
            )
        if status == -5:
            continue  # it has changed since it was read
        if status == -6:
            raise VotesUsed(retry_after=max(1, rest[0] // 1000))
        _check({-2: -2, -3: -2, -4: -3}.get(status, status))
        return await load(broker, battle_id, owner)


def _check(status: int) -> None:
    errors = {-1: NoSuchBattle, -2: RoundOver, -3: RoundUnderWay}
    if status < 0:
        raise errors.get(status, Conflict)


def _said(battle: Battle) -> bytes:
    turns = [
        {"text": turn.text}
        | {side: found.text for side, found in zip(SIDES, turn.seen, strict=True) if found is not None}
        for turn in battle.turns
    ]
    return compress({"turns": turns})


def _entry(battle: Battle, voter: Voter) -> list[str]:
    """What the script does not know of a vote."""
    seen = [(turn.text, *turn.seen) for turn in battle.turns]
    said = [(text, a.text if a else "", b.text if b else "") for text, a, b in seen]
    found = features.describe(said, battle.models)
    return [
        "turns", str(len(battle.turns)), "voter", voter.voter, "categories", " ".join(found.categories),
        "style_a", " ".join(map(str, found.style_a)), "style_b", " ".join(map(str, found.style_b)),
        "leak", str(int(found.leak)),
    ]  # fmt: skip


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return f"network {address}"
    mapped = getattr(found, "ipv4_mapped", None) or found
    return f"network {ipaddress.ip_network((mapped, 24 if mapped.version == 4 else 48), strict=False)}"


def _battle(battle_id: str, record: dict[bytes, bytes]) -> Battle:
    plain = {key.decode(): value for key, value in record.items()}

    def text(name: str) -> str:
        return plain.get(name, b"").decode()

    def answer(side: str, turn: int) -> SideAnswer | None:
        data = plain.get(f"{side}:{turn}")
        return None if data is None else SideAnswer.decode(data)

    turns = tuple(
        BattleTurn(
            text(f"user:{i}"),
            answer("a", i),
            answer("b", i),
            (text(f"run:a:{i}"), text(f"run:b:{i}")),
            f"unchecked:{i}" in plain,
        )
        for i in range(int(text("turns")))
    )
    return Battle(
        battle_id, text("owner"), text("kind"), (text("a"), text("b")), float(text("p")), int(text("created")), text("state"),
        text("revealed") == "1", text("winner"), text("why"), int(text("revision")), turns,
    )  # fmt: skip
