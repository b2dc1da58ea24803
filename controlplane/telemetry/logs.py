"""Structured logs on standard error: JSON for machines, colours for people. Secrets and personal data do not pass."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

__all__ = ["configure", "redact"]

_SECRET_NAMES = re.compile(r"password|secret|authorization|api_key|body|short_message", re.IGNORECASE)
_API_KEY = re.compile(r"hg_(live|test)_[0-9A-Za-z]{4,}")
_CREDENTIALS = re.compile(r"(://)[^/@\s]+@")
_NUMBER = re.compile(r"(?<![\w.:-])(\+\d{3})\d{3,10}(\d{2})(?!\d)")


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The last processor before rendering: hides what must not be written, whoever logged it."""
    for name, value in event.items():
        if _SECRET_NAMES.search(name):
            event[name] = "[hidden]"
        elif isinstance(value, str):
            text = _API_KEY.sub(r"hg_\1_[hidden]", value)
            text = _CREDENTIALS.sub(r"\1[hidden]@", text)
            event[name] = _NUMBER.sub(r"\1****\2", text)
    return event


def configure(level: str, *, as_json: bool) -> None:
    """Set up structlog for the process."""
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, redact, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
