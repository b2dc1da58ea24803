"""Errors that people see. Each says what happened, with which value, and what to do next.

`Problem` becomes RFC 9457 `application/problem+json` at the API's border; the CLI prints the same three sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ConfigError", "FieldError", "Problem", "StoreUnavailableError"]


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


class ConfigError(Exception):
    """A setting, file or machine is not as it must be; the message says what to change."""


class StoreUnavailableError(Exception):
    """MongoDB did not confirm in time. Whether the write will take effect is not known to the caller."""
