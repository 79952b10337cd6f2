"""Every way in which FleetChat says no.

Each class carries the HTTP `status`, a stable `code` and a sentence that says what happened and what to do. Errors are
raised where they are known and caught in two places: the web middleware (a page or JSON) and the worker's job wrapper
(the last frame of the answer).

    FleetError                    500  internal
    ├── BadRequest                400  bad_request          the request's shape or a value is wrong
    │   ├── TextRefused           400  text_refused         moderation objects to a question of a battle
    │   ├── PromptEmpty           400  prompt_empty
    │   ├── PromptTooLarge        413  prompt_too_large     more bytes than FLEETCHAT_PROMPT_BYTES
    │   └── PromptTooLong         400  context_length_exceeded   more tokens than the model takes
    ├── Unauthorized              401  invalid_api_key      the API key is missing, unknown or expired
    ├── Forbidden                 403  forbidden
    ├── NotFound                  404  not_found
    │   ├── NoSuchModel           404  model_not_found
    │   ├── NoSuchConversation    404  conversation_not_found
    │   └── NoSuchBattle          404  battle_not_found
    ├── Conflict                  409  conflict
    │   ├── RoundOver             409  round_over           the round is voted on, void, or its names are known
    │   └── RoundUnderWay         409  round_under_way      its answers are not finished
    ├── Overloaded                429  overloaded           carries retry_after
    │   ├── QueueFull             429  queue_full
    │   ├── ShareUsed             429  share_used
    │   ├── VotesUsed             429  votes_used           as many votes a day as a session, address or network has
    │   └── RateLimited           429  rate_limit_exceeded  an API key's requests or tokens a minute are used up
    ├── Unavailable               503  unavailable
    │   ├── NoWorker              503  no_worker
    │   ├── TooFewModels          503  two_models           no two models that may meet in a battle are running
    │   ├── TextUnchecked         503  text_unchecked       moderation cannot say, and fails closed
    │   ├── BoutRefused           503  bout_refused         a side of a blind round was not accepted
    │   ├── WaitedTooLong         503  waited_too_long
    │   ├── ShuttingDown          503  shutting_down        this web process ends; another one may be there
    │   ├── StorageFull           503  storage
    │   └── RedisAway             503  redis_away
    ├── RanTooLong                504  ran_too_long
    ├── WorkerLost                502  worker_lost          the request brought down its workers
    ├── SideFailed                502  side_failed          one side of a battle failed, so its round is void
    ├── AnswerRefused             502  answer_refused       moderation objects to an answer, so its round is void
    ├── AnswerUnchecked           503  answer_unchecked     moderation cannot say of the answers, and fails closed
    ├── EngineFailed              500  engine_failed
    │   ├── StepFailed            500  engine_failed        a step of the model failed under several requests: each is tried again
    │   └── UpstreamFailed        502  upstream_failed      the server behind a remote model broke off or made no sense
    │       └── KeyRefused        502  upstream_auth        it refused our key, or the account has nothing left
    └── SetupError                 -   setup                a command cannot start: one sentence, exit code 2
        └── ModelUnusable          -   model_unusable       this worker cannot serve its model
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class FleetError(Exception):
    """The root: `status` is HTTP's, `code` is for programs, the message is for people."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    sentence: ClassVar[str] = "Something went wrong on our side. Please try again; the server's log has the cause."

    def __init__(self, message: str = "", *, retry_after: int | None = None, param: str | None = None) -> None:
        super().__init__(message or self.sentence)
        self.retry_after = retry_after  # seconds
        self.param = param  # the field of the request that is wrong

    def to_map(self) -> dict[str, Any]:
        """What travels: code, message, status and, where known, retry_after (seconds) and param."""
        more = {"retry_after": self.retry_after, "param": self.param}
        error = {"code": self.code, "message": str(self), "status": self.status}
        return error | {name: value for name, value in more.items() if value is not None}


class BadRequest(FleetError):
    status, code = 400, "bad_request"
    sentence = "The request has a field that is missing, of a wrong type or out of range."


class TextRefused(BadRequest):
    code = "text_refused"
    sentence = "This message goes against the rules of this site, so it was not sent. Please write something else."


class PromptEmpty(BadRequest):
    code = "prompt_empty"
    sentence = "The message is empty. Write something and send it again."


class PromptTooLarge(BadRequest):
    status, code = 413, "prompt_too_large"
    sentence = "The conversation is larger than this server takes. Shorten it or start a new one."


class PromptTooLong(BadRequest):
    code = "context_length_exceeded"
    sentence = "The conversation is longer than the model takes. Shorten it or start a new one."


class Unauthorized(FleetError):
    status, code = 401, "invalid_api_key"
    sentence = "This API key is missing, unknown, expired or revoked."


class Forbidden(FleetError):
    status, code = 403, "forbidden"
    sentence = "That is not allowed from here."


class NotFound(FleetError):
    status, code = 404, "not_found"
    sentence = "There is nothing at this address."


class NoSuchModel(NotFound):
    code = "model_not_found"
    sentence = "No worker has ever offered this model. Pick another one."


class NoSuchConversation(NotFound):
    code = "conversation_not_found"
    sentence = "This conversation does not exist, or it is not yours."


class Conflict(FleetError):
    status, code = 409, "conflict"
    sentence = "As many answers as may be are being written in this conversation. Stop one, or wait for one to finish."


class NoSuchBattle(NotFound):
    code = "battle_not_found"
    sentence = "This round does not exist any more, or it is not yours. Begin a new one."


class RoundOver(Conflict):
    code = "round_over"
    sentence = "This round is over. Begin a new one."


class RoundUnderWay(Conflict):
    code = "round_under_way"
    sentence = "Both answers have to be finished first."


class Overloaded(FleetError):
    status, code = 429, "overloaded"
    sentence = "The server is busy. Please try again in a moment."


class QueueFull(Overloaded):
    code = "queue_full"
    sentence = "Too many requests wait for this model. Please try again in a moment, or pick another model."


class ShareUsed(Overloaded):
    code = "share_used"
    sentence = "You have as many answers under way as one user may have. Wait for one to finish, or stop one."


class RateLimited(Overloaded):
    code = "rate_limit_exceeded"
    sentence = "This API key has used what it may use in a minute. Please try again in a moment."


class VotesUsed(Overloaded):
    code = "votes_used"
    sentence = "You have voted as often as may be in one day. Thank you; please come back tomorrow."


class Unavailable(FleetError):
    status, code = 503, "unavailable"
    sentence = "This is not available right now. Please try again in a moment."


class NoWorker(Unavailable):
    code = "no_worker"
    sentence = "No worker serves this model right now. Pick another model, or start a worker for it."


class TooFewModels(Unavailable):
    code = "two_models"
    sentence = "A battle needs two models, and fewer are running right now. Please try again in a moment."


class TextUnchecked(Unavailable):
    code = "text_unchecked"
    sentence = "This message could not be checked just now, so it was not sent. Please try again in a moment."


class BoutRefused(Unavailable):
    """Which model it was, and why, would betray it."""

    code = "bout_refused"
    sentence = "One of the two models cannot answer right now. Please try again in a moment, or begin a new round."


class WaitedTooLong(Unavailable):
    code = "waited_too_long"
    sentence = "No worker had a free place in time. Please try again, or pick another model."


class ShuttingDown(Unavailable):
    code = "shutting_down"
    sentence = "The server is being stopped or restarted, so the answer was ended here. Please try again in a moment."


class StorageFull(Unavailable):
    code = "storage"
    sentence = "The server's storage is full, so it takes no new requests. Please tell its operator."


class RedisAway(Unavailable):
    code = "redis_away"
    sentence = "The server has lost its connection to Redis and is trying again. Please try again in a moment."


class RanTooLong(FleetError):
    status, code = 504, "ran_too_long"
    sentence = "The answer took longer than the time limit, so it was ended here."


class WorkerLost(FleetError):
    status, code = 502, "worker_lost"
    sentence = "The workers that tried to answer this went down one after another, so it was given up."


class SideFailed(FleetError):
    status, code = 502, "side_failed"
    sentence = "One of the two answers has failed, so this round is void. Begin a new one."


class AnswerRefused(FleetError):
    """Which side it was would say something of its model."""

    status, code = 502, "answer_refused"
    sentence = "One of the answers goes against the rules of this site, so this round is void. Begin a new one."


class AnswerUnchecked(FleetError):
    status, code = 503, "answer_unchecked"
    sentence = "The answers could not be checked just now, so this round is void. Begin a new one."


class EngineFailed(FleetError):
    code = "engine_failed"
    sentence = "The model failed while it was answering. Please try again; the worker's log has the cause."


class StepFailed(EngineFailed):
    """One of the requests in the step brought it down, and nobody knows which: all are tried again, see `release`."""


class UpstreamFailed(EngineFailed):
    status, code = 502, "upstream_failed"
    sentence = "The server behind this model failed. Please try again, or pick another model."


class KeyRefused(UpstreamFailed):
    code = "upstream_auth"
    sentence = "The server behind this model refused our key. The model's operator has to look; pick another model."


class SetupError(FleetError):
    code = "setup"
    sentence = "The command cannot start."


class ModelUnusable(SetupError):
    code = "model_unusable"
    sentence = "This model cannot be served."


def from_map(error: Mapping[str, Any]) -> FleetError:
    """The error whose `to_map` this was; an unknown code gives a plain FleetError with the same message."""
    return _BY_CODE.get(str(error.get("code")), FleetError)(
        str(error.get("message", "")), retry_after=error.get("retry_after"), param=error.get("param")
    )


def _tree(root: type[FleetError]) -> dict[str, type[FleetError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


_BY_CODE = _tree(FleetError)
