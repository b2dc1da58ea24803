"""Message ids as carriers write them: one way in the response, perhaps another in the receipt."""

from __future__ import annotations

import random
import string
import uuid

__all__ = ["in_receipt", "new_id"]


def new_id(fmt: str, number: int, rng: random.Random) -> str:
    """The id of the `number`-th accepted part."""
    if fmt == "decimal":
        return str(1_000_000 + number)
    if fmt == "padded":
        return f"{1_000_000 + number:012d}"
    if fmt == "uuid":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    if fmt == "alnum":
        return "".join(rng.choices(string.ascii_letters + string.digits, k=20)) + str(number)
    text = f"{0xA000000 + number:x}"
    return text.upper() if fmt == "hex_upper" else text


def in_receipt(message_id: str, fmt: str) -> str:
    """The same id as the receipt writes it."""
    if fmt == "decimal":
        return str(int(message_id, 16))
    if fmt == "hex":
        return f"{int(message_id):X}"
    if fmt == "upper":
        return message_id.upper()
    if fmt == "padded":
        return message_id.rjust(20, "0")
    if fmt == "stripped":
        return message_id.lstrip("0")
    return message_id
