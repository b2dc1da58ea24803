"""A table in the body of a request, as it comes: raw, or the file of a form."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from controlplane.api.bodies import media_type
from controlplane.api.problems import invalid
from controlplane.domain.sheet import ENCODINGS
from controlplane.errors import FieldError, Problem

__all__ = ["CSV", "FORM", "Upload", "upload_of"]

CSV = "text/csv"
FORM = "multipart/form-data"
_PIECE = 64 * 1024
_MAX_FIELD = 100_000
_MAX_FIELDS = 20


@dataclass(slots=True)
class Upload:
    """What is uploaded, and what is said of it."""

    options: dict[str, str]
    """Of the query; of a form, those fields that stand before the file."""
    name: str
    pieces: AsyncIterator[bytes]
    """The table, in pieces of 64 KiB and more."""


async def upload_of(request: Request) -> Upload:
    """Raises Problem 415, 400 or 422."""
    given = request.headers.get("content-type", "")
    options = dict(request.query_params)
    if media_type(given, (CSV, FORM)) == CSV:
        charset = parse_options_header(given)[1].get(b"charset", b"").decode("latin-1")
        if charset:
            options.setdefault("encoding", _encoding(charset))
        return Upload(options, options.get("name", ""), _gathered(request.stream()))
    form = _Form(given)
    stream = request.stream()
    async for data in stream:
        form.write(data)
        if form.began:
            break
    else:
        raise invalid([FieldError("file", "is required: a part of the form that has a file name, after its fields")])
    return Upload(options | form.fields, form.fields.get("name") or form.file_name, _gathered(form.rest(stream)))


def _encoding(charset: str) -> str:
    try:
        codec = codecs.lookup(charset).name
    except LookupError:
        return charset
    return next((name for name in ENCODINGS if codecs.lookup(name).name == codec), charset)


async def _gathered(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    gathered = bytearray()
    async for piece in pieces:
        gathered += piece
        if len(gathered) >= _PIECE:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


class _Form:
    """multipart/form-data (RFC 7578): small fields, then one file, of which nothing is kept."""

    def __init__(self, content_type: str) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        self.fields: dict[str, str] = {}
        self.file_name = ""
        self.began = False
        """The file's octets come."""
        self._ended = False
        self._pieces: list[bytes] = []
        self._header = ("", "")
        self._part: dict[str, str] = {}
        self._value = bytearray()
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers,
                    "on_part_data": self._on_data,
                    "on_part_end": self._on_part_end,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from None
        if not boundary:
            raise _malformed("The Content-Type has no boundary.")

    def write(self, data: bytes) -> None:
        """More of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(str(error)) from None

    async def rest(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The file."""
        while True:
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                yield piece
            try:
                self.write(await anext(stream))
            except StopAsyncIteration:
                break
        if not self._ended:
            raise _malformed("The form ends before its file does.")

    def _on_part(self) -> None:
        self._part, self._value, self._header = {}, bytearray(), ("", "")

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0] + data[start:end].decode("latin-1"), "")

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0], self._header[1] + data[start:end].decode("latin-1"))

    def _on_header_end(self) -> None:
        if self._header[0].lower() == "content-disposition":
            options = parse_options_header(self._header[1])[1]
            self._part = {name.decode("latin-1"): value.decode("utf-8", "replace") for name, value in options.items()}
        self._header = ("", "")

    def _on_headers(self) -> None:
        if "filename" not in self._part:
            return
        if self.began:
            raise invalid([FieldError("file", "has come already; a job is one table")])
        self.file_name, self.began = self._part["filename"][:200], True

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if "filename" in self._part:
            self._pieces.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD or len(self.fields) >= _MAX_FIELDS:
            raise invalid([FieldError(self._part.get("name", "")[:100], "is too long, or one field too many")])

    def _on_part_end(self) -> None:
        if "filename" in self._part:
            self._ended = True
        elif self._value:
            self.fields[self._part.get("name", "")] = self._value.decode("utf-8", "replace")


def _malformed(detail: str) -> Problem:
    return Problem(
        "malformed-form",
        "The body is not a form",
        400,
        detail,
        "Send multipart/form-data (RFC 7578), or the table alone as text/csv.",
    )
