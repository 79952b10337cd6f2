"""Whether a text may stand in the arena: prompts before they are asked, both sides' answers before they count.

Comes in: texts. Goes out: a verdict, which the `jobs` worker gives by the way that the rules name (`workers.moderation`).
Where it gives none in time, the rules say which one that is. What was in a text is in no log and no verdict.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from broker import chat, metrics
from broker.connection import Broker, redis_errors
from broker.errors import BadRequest, FleetError, ShareUsed
from broker.messages import JobRequest
from broker.rules import Rules

logger = logging.getLogger("fleetchat.moderation")

SECONDS = 10.0  # for one check


@dataclass(frozen=True, slots=True)
class ModerationRequest(JobRequest):
    """Texts that are to be checked, together."""

    JOB: ClassVar[str] = "moderate"

    texts: Sequence[str]

    def check(self) -> None:
        """Raises BadRequest when there is something else among them."""
        if isinstance(self.texts, str) or not all(isinstance(text, str) for text in self.texts):
            raise BadRequest("texts holds something that is no text.", param="texts")


@dataclass(frozen=True, slots=True)
class Verdict:
    """On some texts together: it does not say which of them it is about."""

    flagged: bool
    why: str = ""  # for the operator: what objected, or what failed
    failed: bool = False  # the check could not be made; `flagged` is as the rules have it then


async def check(broker: Broker, rules: Rules, texts: Sequence[str], owner: str = "") -> Verdict:
    """The verdict on texts, of which empty ones are passed over. Takes SECONDS at most.

    Raises:
        ShareUsed: this owner has as many requests under way as may be, and the texts are theirs to send later.
    """
    texts = [text for text in texts if text.strip()]
    if not (rules.moderation.on and texts):
        return Verdict(False)
    verdict = await _verdict(broker, rules, ModerationRequest(texts, owner=owner))
    result = "failed" if verdict.failed else "flagged" if verdict.flagged else "passed"
    metrics.MODERATED.labels(result).inc()
    if verdict.failed:
        logger.warning("a check could not be made, and fails %s: %s", rules.moderation.fails, verdict.why)
    elif verdict.flagged:
        logger.info("a check objected: %s", verdict.why)
    return verdict


async def _verdict(broker: Broker, rules: Rules, request: ModerationRequest) -> Verdict:
    try:
        async with asyncio.timeout(SECONDS), redis_errors():
            why = (await chat.job(broker, request))["why"]
    except TimeoutError:
        failure = f"it took longer than {SECONDS:g} s"
    except ShareUsed:
        raise  # so that nobody can keep the checks from others
    except FleetError as error:
        failure = error.code  # not its sentence, which may quote a text
    else:
        return Verdict(bool(why), why)
    return Verdict(rules.moderation.fails == "closed", failure, failed=True)
