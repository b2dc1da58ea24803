"""Keyed hashes of what messages are found by. No number, reference or word is in the index, and without the key nobody can look one up in it.

32 bits each, BLAKE2b (RFC 7693) under a key of its own, derived from HELIOGRAPH_SECRET_KEY. Two things may share one: whatever the index finds is read and
compared before it is shown.
"""

from __future__ import annotations

import hashlib
import hmac

from controlplane.domain.message import Message
from controlplane.domain.query import Match, Place, Query, digits_of, words

__all__ = ["Tokens"]

_BEGINNINGS = (1, 2, 3, 5, 7, 9)
_ENDS = (4, 6, 8)
_REFERENCE = (2, 4, 6, 8, 12)
_REMEMBERED = 200_000


class Tokens:
    """One per process."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"heliograph search index", "sha256")
        self._known: dict[tuple[str, str], int] = {}
        self._senders: dict[str, list[int]] = {}

    def _token(self, field: str, value: str) -> int:
        known = self._known.get((field, value))
        if known is None:
            digest = hashlib.blake2b(f"{field}\x00{value}".encode(errors="replace"), digest_size=4, key=self._key)
            known = int.from_bytes(digest.digest(), "big")
            if len(value) <= 9:  # longer ones are mostly met once
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[field, value] = known
        return known

    def _number(self, field: str, digits: str) -> list[int]:
        token, size = self._token, len(digits)
        found = [token(field + "=", digits)]
        found += [token(field + "<", digits[:length]) for length in _BEGINNINGS if length <= size]
        found += [token(field + ">", digits[-length:]) for length in _ENDS if length <= size]
        return found

    def _sender(self, sender: str) -> list[int]:
        found = self._senders.get(sender)
        if found is None:
            digits = digits_of(sender)
            found = [*(self._number("from", digits) if digits else ()), self._token("name", sender.casefold())]
            if len(self._senders) >= _REMEMBERED // 20:
                self._senders.clear()
            self._senders[sender] = found
        return found

    def of_message(self, message: Message) -> list[int]:
        """Everything that `message` is found by, distinct; nothing once it is erased."""
        found: list[int] = []
        if message.to:
            found += self._number("to", digits_of(message.to))
        if message.sender:
            found += self._sender(message.sender)
        if reference := message.reference:
            found.append(self._token("ref=", reference))
            found += [self._token("ref<", reference[:size]) for size in _REFERENCE if size <= len(reference)]
        found += [self._token("word", word) for word in words(message.body)]
        return list(dict.fromkeys(found))

    def of_query(self, query: Query) -> list[int]:
        """Tokens that each message that is looked for has, the rarest first, as far as can be told."""
        ranked: list[tuple[float, int]] = []
        for field, match in (("to", query.to), ("from", query.sender)):
            if match is not None and match.number:
                ranked.append(self._of_number(field, match))
            elif match is not None:
                ranked.append((5.0, self._token("name", match.value)))
        if (match := query.reference) is not None:
            if match.place is Place.WHOLE:
                ranked.append((1.0, self._token("ref=", match.value)))
            else:
                size = max(length for length in _REFERENCE if length <= len(match.value))
                ranked.append((4.0 / size, self._token("ref<", match.value[:size])))
        ranked += [(3.0 - min(len(word), 20) / 10, self._token("word", word)) for word in query.words]
        return list(dict.fromkeys(token for _, token in sorted(ranked)))

    def _of_number(self, field: str, match: Match) -> tuple[float, int]:
        digits = match.value
        if match.place is Place.WHOLE:
            return 0.0, self._token(field + "=", digits)
        if match.place is Place.END:
            size = max(length for length in _ENDS if length <= len(digits))
            return 4.0 / size - 0.5, self._token(field + ">", digits[-size:])
        size = max(length for length in _BEGINNINGS if length <= len(digits))
        return 8.0 / size, self._token(field + "<", digits[:size])
