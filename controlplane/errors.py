"""Errors that people see. Each says what happened, with which value, and what to do next.

`Problem` becomes RFC 9457 `application/problem+json` at the API's border; the CLI prints the same three sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["SLUGS", "ConfigError", "FieldError", "Problem", "StoreUnavailableError", "bare"]

SLUGS: dict[str, str] = {
    "invalid-request": "A field is missing, unknown or out of range; `errors` points to each.",
    "malformed-json": "The body is not JSON, or not UTF-8.",
    "body-too-large": "The body is larger than the node takes.",
    "unsupported-media-type": "The Content-Type is not one that this call takes.",
    "unauthorized": "There is no usable API key.",
    "forbidden": "The key lacks the scope, or its tenant is disabled.",
    "not-found": "There is no such thing, or it is not yours.",
    "method-not-allowed": "The path exists, the method does not.",
    "already-exists": "The name is taken.",
    "in-use": "Something else still needs it.",
    "last-admin": "The only admin of the console who can log in would be gone.",
    "unknown-connector": "A route names a connector that does not exist.",
    "unknown-tenant": "A record names a tenant that does not exist.",
    "recipient-opted-out": "The recipient has opted out of such messages of yours.",
    "recipient-complained": "The recipient has complained about such messages of yours.",
    "recipient-invalid": "The number is on your suppression list as invalid.",
    "recipient-suppressed": "The number is on your suppression list.",
    "class-blocked": "The recipient does not want messages of this class.",
    "quiet-hours": "The recipient's quiet hours refuse the message, or its validity ends before they do; `until` says when they end.",
    "quiet-hours-never-end": "In all time zones where the recipient may be together there is no time outside quiet hours.",
    "no-route": "No route may carry the message; `excluded` says why for each.",
    "too-many-parts": "The text needs more parts than allowed.",
    "idempotency-key-reused": "The Idempotency-Key came before, with another body.",
    "malformed-form": "The body is not multipart/form-data.",
    "too-many-jobs": "Too many batch jobs are not at their end.",
    "too-much-stored": "The tables of the tenant's batch jobs hold as much as they may.",
    "not-in-this-state": "The batch job is past that, or not yet so far.",
    "not-cancellable": "The message is already on its way, or at its end.",
    "not-resendable": "The message is delivered, from a phone, or still on its way.",
    "may-have-arrived": "A message that may have arrived is sent again only when that is said outright.",
    "not-final": "The message is still open.",
    "not-firing": "The alert is over.",
    "no-longer-possible": "The message's content is erased.",
    "other-datacenter": "Another datacenter has the message, and alone may change it; `datacenter` says which.",
    "no-peer": "Durability `global`, where no second datacenter is configured.",
    "not-mirrored": "Durability `global`: no second datacenter had the message in time. It is recorded as refused, and is not sent.",
    "own-datacenter": "A datacenter does not adopt its own messages.",
    "region-alive": "The datacenter whose messages are to be taken over still answers.",
    "adoption-running": "The datacenter's messages are being taken over, or counted, already.",
    "operation-unfinished": "Another operation on the region runs, or is neither gone on with nor aborted; `operation` names it.",
    "operation-not-so": "The operation is past that, or not yet so far.",
    "not-held": "Somebody else runs the operation, or it does not run.",
    "damaged-log": "What the ledger published cannot be read back; repair mends it.",
    "not-available": "The feature is not part of this node.",
    "rate-limited": "More messages a second than the key may send.",
    "overloaded": "The node is full.",
    "stopping": "The node is shutting down.",
    "store-unavailable": "MongoDB does not confirm writes at the moment.",
    "accept-unconfirmed": "Not confirmed in time, by MongoDB or by a second datacenter; the message may or may not be accepted.",
    "damaged-record": "The stored events of a message have a gap: the store lost a write that it confirmed.",
    "internal": "A fault of ours; the log has it under `request_id`.",
}
"""Slug → when it is used. docs/api.md has them all (a test sees to that)."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with a request: `pointer` is an RFC 6901 JSON pointer (`""` is the whole body) or a parameter's name."""

    pointer: str
    detail: str


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """An answer that is not a success. `slug` is stable and documented in docs/api.md."""

    def __init__(
        self,
        slug: str,
        title: str,
        status: int,
        detail: str,
        next_step: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(f"{title}: {detail} {next_step}")
        self.slug = slug
        self.title = title
        self.status = status
        self.detail = detail
        self.next_step = next_step
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


def bare(problem: Problem) -> Problem:
    """One that is kept as an answer, without the frames that it came through: one of them may hold the problem, and so keep itself and all that it knows alive."""
    problem.__traceback__ = problem.__context__ = problem.__cause__ = None
    return problem


class ConfigError(Exception):
    """A setting, file or machine is not as it must be; the message says what to change."""


class StoreUnavailableError(Exception):
    """MongoDB did not confirm in time. Whether the write will take effect is not known to the caller."""
