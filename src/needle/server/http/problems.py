"""Errors as problem documents (RFC 9457), and which status each has.

Invariant: every NeedleError has a status; what is not one is `internal`, and its text stays in the log.
"""

from __future__ import annotations

from typing import Final

import msgspec

from needle.base.errors import Detail, NeedleError, by_code

CONTENT_TYPE: Final = "application/problem+json"
RETRY_SECONDS: Final = 1
"""What `Retry-After` says where a retry is safe."""

_STATUS: Final = {
    "invalid_argument": 400,
    "invalid_config": 400,
    "protocol_error": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "unknown_method": 501,
    "collection_not_found": 404,
    "document_not_found": 404,
    "collection_exists": 409,
    "already_exists": 409,
    "version_mismatch": 412,
    "cluster_too_old": 409,
    "condition_failed": 412,
    "idempotency_key_reused": 422,
    "outcome_forgotten": 409,
    "scan_ended": 410,
    "rebalance_ended": 409,
    "frame_too_large": 413,
    "overloaded": 429,
    "too_many_requests": 429,
    "deadline_exceeded": 504,
    "outcome_unknown": 504,
    "disk_full": 507,
}
TITLES: Final = {
    400: "Bad request",
    401: "Unauthenticated",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    408: "Request timeout",
    409: "Conflict",
    410: "Gone",
    412: "Precondition failed",
    413: "Content too large",
    415: "Unsupported media type",
    422: "Unprocessable content",
    429: "Too many requests",
    500: "Internal error",
    501: "Not implemented",
    503: "Unavailable",
    504: "Timeout",
    507: "Insufficient storage",
}


CODES: Final = frozenset(
    {
        *by_code(),
        "malformed_request",
        "no_such_path",
        "method_not_allowed",
        "request_timeout",
        "content_too_large",
        "unsupported_media_type",
    }
)
"""All that a problem document may say: those of errors, and what HTTP itself refuses."""


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457, with Needle's own members. code: of the error, the same in every release. retryable: the request had no
    effect, or repeating it is harmless. field: what in the request it is about. details: facts for programs."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    request_id: str
    field: str = ""
    details: dict[str, Detail] = {}

    def __post_init__(self) -> None:
        if self.status not in TITLES:
            raise ValueError(f"status {self.status} has no title")
        if self.code not in CODES:
            raise ValueError(f"code {self.code} is documented nowhere")


class HttpError(Exception):
    """What HTTP itself refuses, before a call of Needle is made of it."""

    def __init__(self, status: int, code: str, message: str, *, allow: str = "", field: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.allow = allow
        self.field = field


def status_of(error: NeedleError) -> int:
    """Unless named above: 503 if the same call may succeed in a moment, 500 if not."""
    return _STATUS.get(error.code, 503 if error.retryable else 500)


def problem_of(error: NeedleError | HttpError, request_id: str) -> Problem:
    """The document for an error."""
    if isinstance(error, HttpError):
        status, retryable, details = error.status, error.status in (408, 429, 503), {}
        field = error.field
    else:
        status, retryable = status_of(error), error.retryable
        details = {name: value for name, value in error.details.items() if name != "field"}
        field = str(error.details.get("field") or "")
    return Problem(
        type=f"urn:needle:error:{error.code}",
        title=TITLES[status],
        status=status,
        detail=error.message,
        code=error.code,
        retryable=retryable,
        request_id=request_id,
        field=field,
        details=details,
    )
