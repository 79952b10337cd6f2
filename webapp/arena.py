"""The arena: two models answer the same question, over the websocket; votes, names and the round itself over HTTP.

A turn is two of `broker.chat.ask`, side by side: refused if one of them is, void if one of them fails, and ended with the
page. Of a blind round nothing goes out but side, number and text, at one speed for both (`webapp.pacing`); what its
models are called is known to the page only when `broker.arena` shows it.
"""

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from random import SystemRandom
from typing import TYPE_CHECKING, Any

from aiohttp import web

from broker import arena, chat, conversations, leaderboard, moderation, queues, registry, shares
from broker.arena import SIDES, Battle, Started, Voter
from broker.connection import Broker
from broker.errors import (
    AnswerRefused,
    AnswerUnchecked,
    BadRequest,
    BoutRefused,
    FleetError,
    Forbidden,
    PromptTooLarge,
    RedisAway,
    ShareUsed,
    SideFailed,
    StorageFull,
    TextRefused,
    TextUnchecked,
    TooFewModels,
    from_map,
)
from broker.messages import ChatRequest, Frame, Message, ModelCard, pack
from broker.pairing import Odds
from broker.queues import Bout
from broker.rules import Rules
from broker.secret import VOTERS
from broker.streams import Reader
from webapp import protocol
from webapp.body import read_json
from webapp.languages import render
from webapp.pacing import TICK_SECONDS, Pacing
from webapp.protocol import BattleAgain, BattleStop, Round, Settings, parse_settings
from webapp.session import SESSIONS, Sessions
from webapp.state import BROKER

if TYPE_CHECKING:
    from webapp.sockets import Socket

BODY_BYTES = 1024
TABLE_SECONDS = 2.0  # for which the table that pairs are drawn by is good
SAID = (ShareUsed, StorageFull, RedisAway, PromptTooLarge)  # refusals that say nothing of a model


class Arena:
    """The app's: its rules, and what it draws pairs by."""

    def __init__(self, broker: Broker, rules: Rules, sessions: Sessions) -> None:
        self.rules = rules
        self.pacing: dict[str, Pacing] = {}  # of the battles that are being answered through this process
        self._broker = broker
        self._sessions = sessions
        self._table: dict[str, Any] | None = None
        self._read = -TABLE_SECONDS
        self._odds: tuple[object, Odds] | None = None  # and what it was made of

    async def token(self, owner: str) -> str:
        """What the pages of this owner send with all that counts; a program that has not seen a page does not know it."""
        return hmac.new(await self._sessions.key("arena"), owner.encode(), "sha256").hexdigest()

    async def check(self, owner: str, token: str) -> None:
        """Raises Forbidden unless this is the owner's token."""
        if not hmac.compare_digest((await self.token(owner)).encode(), token.encode()):
            raise Forbidden("Reload the page: this one is not, or no longer, from here.")

    async def inspect(self, owner: str, settings: Settings, *texts: str) -> None:
        """Raises PromptTooLarge, TextRefused, TextUnchecked or ShareUsed where what somebody wrote may not be asked now."""
        system = settings.system or ""
        arena.check_length(self.rules, system, system=True)
        verdict = await moderation.check(self._broker, self.rules, [*texts, system], owner)
        if verdict.flagged:
            raise TextUnchecked if verdict.failed else TextRefused

    async def voter(self, request: web.Request, owner: str) -> Voter:
        """Who votes by this request."""
        return Voter.of(await self._sessions.key(VOTERS), owner, address_of(request, self.rules.votes.proxies))

    async def ready(self) -> list[str]:
        """The names of the models that can be drawn now."""
        states = await registry.models(self._broker)
        return sorted(m.card.name for m in states if m.state == "ready" and m.card.kind == "chat")

    async def draw(self) -> tuple[str, str, float]:
        """Two of the models that are ready, and the probability that they had.

        Raises:
            TooFewModels
        """
        names = await self.ready()
        if time.monotonic() - self._read >= TABLE_SECONDS:
            self._table = await leaderboard.pairs(self._broker)
            self._read = time.monotonic()
        made_of = (names, self._table)
        if self._odds is None or self._odds[0] != made_of:
            odds = await asyncio.to_thread(Odds.of, names, self.rules, self._table)
            self._odds = (made_of, odds)
        return self._odds[1].draw(SystemRandom())


ARENA = web.AppKey("arena", Arena)


def address_of(request: web.Request, proxies: int) -> str:
    """Who calls: the peer; behind so many proxies what the outermost of them has seen, and nothing that a caller wrote."""
    if not proxies:
        return request.remote or ""
    seen = [one.strip() for one in ",".join(request.headers.getall("X-Forwarded-For", [])).split(",") if one.strip()]
    return _without_port(seen[-proxies]) if len(seen) >= proxies else request.remote or ""


def _without_port(address: str) -> str:
    """Some proxies write one, and another for each connection."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


# ---- Over the websocket ----


async def battle(socket: "Socket", message: protocol.Battle) -> None:
    """A question to both sides, of a new round or of one that goes on."""
    await socket.arena.check(socket.owner, message.token)
    broker, rules = socket.broker, socket.arena.rules
    arena.check(rules, message.text)
    known: dict[str, Any] = {"battle_id": message.battle}
    if message.battle:
        before = await _going_on(socket, message)
        kind, models, histories = (
            before.kind,
            before.models,
            [before.history(side, len(before.turns)) for side in SIDES],
        )
    else:
        kind, (models, probability), histories = message.kind, await _pair(socket, message), [(), ()]
        known |= {"kind": kind, "models": models, "probability": probability}
    await socket.arena.inspect(socket.owner, message.settings, message.text)
    started = await arena.begin(broker, rules, socket.owner, message.text, **known)
    said = [(*history, Message("user", message.text)) for history in histories]
    await _Turn(socket, message, kind, models, started).play(said)


async def again(socket: "Socket", message: BattleAgain) -> None:
    """The last question, answered again by both."""
    await socket.arena.check(socket.owner, message.token)
    await _going_on(socket, message)
    await socket.arena.inspect(socket.owner, message.settings)
    started = await arena.again(socket.broker, socket.arena.rules, socket.owner, message.battle)
    try:
        before = await arena.load(socket.broker, message.battle, socket.owner)
    except BaseException:
        socket.broker.later(arena.withdraw(socket.broker, started, socket.owner))
        raise
    question = Message("user", before.turns[started.turn].text)
    said = [(*before.history(side, started.turn), question) for side in SIDES]
    await _Turn(socket, message, before.kind, before.models, started).play(said)


async def stop(socket: "Socket", message: BattleStop) -> None:
    """Both answers end; the one that had come to its end goes on to be shown only if the other one had, too."""
    found = await arena.load(socket.broker, message.battle, socket.owner)
    if not found.turns:
        return
    ended = [await queues.cancel(socket.broker, one, socket.owner) for one in found.turns[-1].requests]
    if pacing := socket.arena.pacing.get(message.battle):
        if any(ended):
            pacing.stop()
        else:
            pacing.hurry()


HANDLERS: dict[str, Callable[["Socket", Any], Awaitable[None]]] = {
    "battle": battle,
    "battle-again": again,
    "battle-stop": stop,
}


async def _pair(socket: "Socket", message: protocol.Battle) -> tuple[tuple[str, str], float]:
    """The models of a new round, and the probability with which they were drawn; 0 where somebody chose them."""
    if message.kind == "blind":
        _choose_nothing(message, *message.models)
        a, b, probability = await socket.arena.draw()
        return (a, b), probability
    if len(set(message.models)) != 2:
        raise BadRequest("models: two different ones are needed.", param="models")
    a, b = message.models
    return (a, b), 0.0


async def _going_on(socket: "Socket", message: protocol.Battle | BattleAgain) -> Battle:
    """The round that a message is about."""
    found = await arena.load(socket.broker, message.battle, socket.owner)
    if found.kind == "blind":
        _choose_nothing(message)
    return found


def _choose_nothing(message: Round, *models: str) -> None:
    """Raises BadRequest when a message chooses what nobody chooses in a blind round."""
    if models or message.settings != Settings():
        raise BadRequest("models, settings: a blind round has none that you choose.")


class _Turn:
    """One turn of a battle, from its two requests to the end of both answers."""

    def __init__(self, socket: "Socket", message: Round, kind: str, models: tuple[str, str], started: Started) -> None:
        self._socket, self._message, self._models, self._started = socket, message, models, started
        self._blind = kind == "blind"
        self._tags = {"battle": started.battle_id, "turn": started.turn}
        self._checks = socket.arena.rules.moderation
        self._pacing = Pacing(SIDES, socket.arena.rules.battle.paced, held=self._checks.on)
        self._came = asyncio.Event()
        self._held: list[tuple[str, Frame]] = []  # what is not shown before the check

    async def play(self, said: Sequence[Sequence[Message]]) -> None:
        """Ask both, and show what they say until both have ended, or one has failed."""
        broker, owner = self._socket.broker, self._socket.owner
        async with AsyncExitStack() as asked:
            readers = await self._ask(asked, said)
            await self._send("bout", ref=self._message.ref, **({} if self._blind else {"models": self._models}))
            try:
                await self._show(readers)
            except FleetError as failure:
                if not isinstance(failure, (AnswerRefused, AnswerUnchecked)):  # those have voided it if it is still so
                    await arena.void(broker, self._started.battle_id, owner, str(failure))
                await self._send("void", message=str(failure))
        found = await arena.load(broker, self._started.battle_id, owner)
        await self._send("bout-end", vote=found.votable)

    async def _ask(self, asked: AsyncExitStack, said: Sequence[Sequence[Message]]) -> list[Reader]:
        """Both requests, or neither."""
        try:
            readers = []
            for side, model, request_id, messages in zip(
                SIDES, self._models, self._started.requests, said, strict=True
            ):
                request = await self._request(model, request_id, messages)
                bout = Bout(self._started.battle_id, side, self._started.turn)
                readers.append(await asked.enter_async_context(chat.ask(self._socket.broker, request, bout)))
            return readers
        except BaseException as refusal:  # also when the page goes while they wait to be accepted
            self._socket.broker.later(arena.withdraw(self._socket.broker, self._started, self._socket.owner))
            if self._blind and isinstance(refusal, FleetError) and not isinstance(refusal, SAID):
                raise BoutRefused from None
            raise

    async def _request(self, model: str, request_id: str, messages: Sequence[Message]) -> ChatRequest:
        card = await registry.find(self._socket.broker, model)
        settings = _settings(card, self._message.settings)
        return ChatRequest(
            model,
            (*settings.opening, *messages),
            settings.sampling(secrets.randbits(63)),
            request_id=request_id,
            owner=self._socket.owner,
            template_kwargs=settings.template_kwargs,
        )

    async def _show(self, readers: Sequence[Reader]) -> None:
        """The frames of both, until the last ones.

        Raises:
            FleetError: SideFailed, AnswerRefused, AnswerUnchecked
        """
        if self._blind:
            self._socket.arena.pacing[self._started.battle_id] = self._pacing
        try:
            async with asyncio.TaskGroup() as tasks:
                sides = [tasks.create_task(self._follow(*one)) for one in zip(SIDES, readers, strict=True)]
                if self._blind:
                    tasks.create_task(self._emit())
                await asyncio.wait(sides)
                if self._checks.on:
                    await self._approve()
        except BaseExceptionGroup as failures:
            known, others = failures.split(FleetError)
            if known is None or others is not None:
                raise
            raise known.exceptions[0] from None
        finally:
            self._socket.arena.pacing.pop(self._started.battle_id, None)

    async def _follow(self, side: str, reader: Reader) -> None:
        async for frame in self._frames(side, reader):
            if self._checks.on and (self._checks.before or (frame.end and not self._blind)):
                self._held.append((side, frame))
            else:
                await self._take(side, frame)

    async def _approve(self) -> None:
        """Both together are checked once both have ended, so that neither what is said nor when tells of a single side."""
        state, broker, owner = self._socket.arena, self._socket.broker, self._socket.owner
        checking = broker.later(arena.approve(broker, state.rules, self._started, owner))
        if refusal := await asyncio.shield(checking):  # it is also noted if the page goes now
            raise refusal
        for side, frame in self._held:
            await self._take(side, frame)
        self._pacing.release()
        self._came.set()

    async def _take(self, side: str, frame: Frame) -> None:
        await (self._veil if self._blind else self._pass_on)(side, frame)

    async def _frames(self, side: str, reader: Reader) -> AsyncIterator[Frame]:
        """A side's frames. What it fails with is told only of a named side, since it may say its name."""
        try:
            async for received in reader:
                frame = received.decode()
                if error := (frame.end or {}).get("error"):
                    raise from_map(error)
                yield frame
        except FleetError as error:
            name = self._models[SIDES.index(side)]
            raise (SideFailed() if self._blind else SideFailed(f"{name}: {error}")) from None

    async def _pass_on(self, side: str, frame: Frame) -> None:
        """A named side's frame, as it comes."""
        await self._send("side", side=side, seq=frame.seq, text=frame.text, **_named(frame))

    async def _veil(self, side: str, frame: Frame) -> None:
        """A blind side's frame: of it the text, into the pacing."""
        self._pacing.add(side, frame.seq, frame.text if frame.kind == "text" else "")
        if frame.end and frame.end.get("reason") in arena.DONE:
            self._pacing.end(side)
        elif frame.end:
            self._pacing.stop()
        self._came.set()

    async def _emit(self) -> None:
        """What is due of both, in one message: when it comes, and how large it is, says nothing of a single side."""
        clock = asyncio.get_running_loop().time
        while True:
            self._came.clear()
            if pieces := self._pacing.take(clock()):
                shown = [{"type": "side", "side": p.side, "seq": p.seq, "text": p.text} | self._tags for p in pieces]
                ends = [{"end": True} if p.end else {} for p in pieces]
                await self._socket.send(b"".join(pack(one | end) for one, end in zip(shown, ends, strict=True)))
            if self._pacing.finished:
                return
            if not self._pacing.flows:
                await self._came.wait()
            await asyncio.sleep(TICK_SECONDS)

    async def _send(self, kind: str, **more: Any) -> None:
        await self._socket.send(pack({"type": kind} | self._tags | more))


def _named(frame: Frame) -> dict[str, Any]:
    """What a named side's frame has beside its text."""
    more: dict[str, Any] = {} if frame.kind == "text" else {"kind": frame.kind}
    if frame.end:
        more |= {"end": True} | {name: frame.end.get(name) for name in ("reason", "usage", "timings")}
    return more


def _settings(card: ModelCard, chosen: Settings) -> Settings:
    """What was chosen, and else what the model has by itself."""
    return parse_settings({**card.defaults, **chosen.stored})


# ---- Over HTTP ----


async def page(request: web.Request) -> web.Response:
    """`/arena` and `/compare`; which round it shows, its script reads from the address."""
    kind = "named" if request.path.startswith("/compare") else "blind"
    rules, response = request.app[ARENA].rules.battle, web.Response()
    owner = await request.app[SESSIONS].remember(request, response)
    token = await request.app[ARENA].token(owner)
    limits = {"characters": rules.characters, "most_turns": rules.turns}
    few = await _few(request.app[ARENA]) if kind == "blind" else ""
    shown = render(request, "arena.html", title="FleetChat", kind=kind, token=token, few=few, **limits)
    shown.headers["Cache-Control"] = "no-store"
    shown.cookies.update(response.cookies)
    return shown


async def _few(state: Arena) -> str:
    """What the page says at once when there are too few models for a round."""
    with suppress(RedisAway):
        if len(await state.ready()) < len(SIDES):
            return TooFewModels.sentence
    return ""


async def show(request: web.Request) -> web.Response:
    """A round as its owner may see it."""
    owner = await request.app[SESSIONS].owner(request)
    return _shown(await arena.load(request.app[BROKER], request.match_info["battle"], owner))


async def vote(request: web.Request) -> web.Response:
    """POST {"winner": a, b, tie or bad, "token"}: the vote, once; gives the names."""
    owner, body = await _allowed(request, "winner")
    state, broker = request.app[ARENA], request.app[BROKER]
    voter = await state.voter(request, owner)
    voting = arena.vote(broker, state.rules, request.match_info["battle"], owner, body["winner"], voter)
    return _shown(await asyncio.shield(broker.later(voting)))  # it counts, also if its page goes now


async def reveal(request: web.Request) -> web.Response:
    """POST {"token"}: the names without a vote; one after that is kept apart."""
    owner, _ = await _allowed(request)
    return _shown(await arena.reveal(request.app[BROKER], request.match_info["battle"], owner))


async def share(request: web.Request) -> web.Response:
    """POST {"token"}: a link to the round as it is now, for anybody; without names as long as its owner knows none."""
    owner, _ = await _allowed(request)
    broker = request.app[BROKER]
    found = await arena.load(broker, request.match_info["battle"], owner)
    if not found.turns:
        raise BadRequest("There is nothing in this round yet.")
    link = await shares.keep(broker, owner, conversations.title_of(found.turns[0].text), found.snapshot())
    return web.json_response(link.to_map(), status=201)


async def _allowed(request: web.Request, *names: str) -> tuple[str, dict[str, str]]:
    """Who asks, and the body, which has these texts beside the owner's token."""
    body = await read_json(request, BODY_BYTES)
    if set(body) != {"token", *names} or not all(isinstance(value, str) for value in body.values()):
        raise BadRequest(f"The body has to have {', '.join([*names, 'token'])}, each a text, and nothing else.")
    owner = await request.app[SESSIONS].owner(request)
    await request.app[ARENA].check(owner, body["token"])
    return owner, body


def _shown(found: Battle) -> web.Response:
    return web.json_response(found.shown(), headers={"Cache-Control": "no-store"})
