"""What bodies may be: one JSON document, or one a line."""

from __future__ import annotations

from controlplane.errors import Problem

__all__ = ["JSON", "NDJSON", "lines", "media_type"]

JSON = "application/json"
NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")


def media_type(given: str, allowed: tuple[str, ...]) -> str:
    """The media type of a Content-Type. Raises Problem 415 that names the first two of `allowed` where it is none of them."""
    media = given.split(";", maxsplit=1)[0].strip().lower()
    if media not in allowed:
        raise Problem(
            "unsupported-media-type",
            "Unsupported media type",
            415,
            f"The Content-Type is {given[:100] or 'missing'}.",
            f"Send {' or '.join(allowed[:2])}.",
        )
    return media


def lines(body: bytes) -> list[bytes]:
    """The lines of NDJSON that hold something."""
    return [line for line in body.split(b"\n") if line.strip()]
