"""What another server says when it refuses, and which of our errors that is.

Servers agree on little here: OpenAI's form, FastAPI's `detail`, lists, plain text; a status, a code, a type, or only a
sentence. What is quoted has no keys in it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker.errors import (
    BadRequest,
    FleetError,
    KeyRefused,
    Overloaded,
    PromptTooLarge,
    PromptTooLong,
    Unavailable,
    UpstreamFailed,
)
from workers.engine.remote_wire import DISPENSABLE

QUOTED = 200  # characters of a server's own sentence
STATUS = {  # of an error's code or type, where the answer's own status does not say it
    "insufficient_quota": 402,
    "authentication_error": 401,
    "permission_error": 403,
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": 503,
}
TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|context (length|size|window)|maximum context|prompt is too long"
    r"|input length .*exceeds|maximum (input|sequence) length|(input )?token count .*exceeds the maximum",
    re.IGNORECASE,
)
SECRETS = re.compile(r"(?<=://)[^/@\s]+(?=@)|\bBearer\s+\S+|\b(sk|pk|hf|gsk|xai)[-_][\w-]{6,}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Complaint:
    """What a server says when it refuses."""

    sentence: str = ""
    param: str = ""
    code: str = ""
    kind: str = ""

    @classmethod
    def of(cls, document: Any) -> "Complaint | None":
        """The error in a document: OpenAI's form, FastAPI's `detail`, or a plain text; None when there is none."""
        if isinstance(document, list) and document:
            document = document[0]
        if not isinstance(document, dict):
            return None
        error = document.get("error") or document.get("detail")
        if not error and document.get("object") == "error":
            error = document
        if isinstance(error, list) and error and isinstance(error[0], dict):
            error = {"message": error[0].get("msg"), "param": ["", *(error[0].get("loc") or ())][-1]}
        if isinstance(error, dict):
            return cls(*(str(error.get(key) or "") for key in ("message", "param", "code", "type")))
        return cls(str(error)) if error else None

    def named(self, sent: Mapping[str, Any]) -> str:
        """Which parameter of those sent it is about, or ""."""
        names = [name for name in sent if name not in ("model", "messages", "stream")]
        if self.param.split(".")[0] in names:
            return self.param.split(".")[0]
        return next((name for name in names if re.search(rf"\b{name}\b", self.sentence)), "")

    def dispensable(self, sent: Mapping[str, Any]) -> str:
        """The parameter that it refuses and that can be left out or called otherwise, or ""."""
        name = self.named(sent)
        return name if name in DISPENSABLE and DISPENSABLE[name] in self.sentence else ""

    def status(self, status: int) -> int:
        """The status that is meant; 200 is what a stream or a careless server has around an error."""
        known = STATUS.get(self.code) or STATUS.get(self.kind)
        if status == 200:
            return int(self.code) if re.fullmatch(r"[45]\d\d", self.code) else known or 500
        return 402 if known == 402 else status


def refusal(
    name: str, status: int, complaint: Complaint, sent: Mapping[str, Any], secrets: Sequence[str], wait: int | None
) -> FleetError:
    """Our error for a server's refusal; Overloaded and Unavailable are those that another try may help.

    Args:
        name: the model's.
        sent: the request's body.
        secrets: what must not be quoted.
        wait: its Retry-After, seconds.
    """
    quoted = quote(complaint.sentence, secrets)
    said = f': "{quoted}"' if quoted else "."
    status = complaint.status(status)
    if status in (401, 402, 403):
        return KeyRefused(f"The server behind {name} refused our key or account ({status}). Its operator has to look.")
    if status == 429:
        return Overloaded(
            f"The server behind {name} takes no more requests for now. Please try again in a moment.", retry_after=wait
        )
    if any(TOO_LONG.search(text) for text in (complaint.sentence, complaint.code, complaint.kind)):
        return PromptTooLong(f"The conversation is longer than the server behind {name} takes{said}")
    if status >= 500 or status == 408:
        return Unavailable(f"The server behind {name} failed or is overloaded ({status}){said}", retry_after=wait)
    if status == 404:
        return UpstreamFailed(
            f"The server behind {name} does not know the model or the address ({status}). Its operator has to look."
        )
    if status == 413:
        return PromptTooLarge()
    if status < 400:
        return UpstreamFailed(f"The server behind {name} answered with status {status}; redirects are not followed.")
    if parameter := complaint.named(sent):
        return BadRequest(f"The server behind {name} refused {parameter}{said}")
    return BadRequest(f"The server behind {name} refused the request{said}")


def quote(text: str, secrets: Sequence[str] = ()) -> str:
    """A server's own words, without keys, on one line, of at most QUOTED characters."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = " ".join(SECRETS.sub("***", text).encode(errors="replace").decode().split())
    return text if len(text) <= QUOTED else text[: QUOTED - 1] + "…"
