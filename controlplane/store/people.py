"""The people of the console, and what they prove themselves with.

`people`: `{_id: name, role, tenant, enabled, password (argon2id, "" before the first), totp (sealed, "" without), step (of the last code that was
taken), codes: [digest of an unused recovery code, …], look, created_at, last_login_at}`. People belong to one deployment's datacenter, as its catalog does.

Whatever may happen only once (a code of an authenticator, a recovery code) is taken by a conditional update, so that of two who come at once on two
nodes one gets it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b32encode
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyotp
from pymongo.errors import DuplicateKeyError

from controlplane.clock import Clock
from controlplane.domain.people import Look, Person, Role
from controlplane.errors import Problem, StoreUnavailableError
from controlplane.store.client import Database, Document, border
from controlplane.store.passwords import Passwords
from controlplane.store.seal import Seal

__all__ = ["PEOPLE", "People", "digest", "nobody", "person_of"]

PEOPLE = "people"
_PERIOD = 30
_RECOVERY_CODES = 10


class People:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database, seal: Seal, clock: Clock) -> None:
        self._people = database[PEOPLE]
        self._seal = seal
        self._clock = clock
        self._passwords = Passwords()

    # -- who there is --------------------------------------------------------------------------------------------------

    async def all(self) -> list[Person]:
        """By name."""
        with border():
            return [person_of(document) for document in await self._people.find({}).sort("_id", 1).to_list()]

    async def find(self, name: str) -> Person | None:
        """One of them."""
        document = await self._document(name)
        return person_of(document) if document else None

    async def any_ready(self) -> bool:
        """Whether the first one has been set up."""
        with border():
            return await self._people.find_one({"password": {"$ne": ""}}, {"_id": 1}) is not None

    async def create(self, name: str, role: Role, tenant: str) -> Person:
        """Somebody without a password yet. Raises Problem 409."""
        document: Document = {
            "_id": name,
            "role": role.value,
            "tenant": tenant,
            "enabled": True,
            "password": "",
            "totp": "",
            "step": 0,
            "codes": [],
            "look": asdict(Look()),
            "created_at": self._clock.now_ms(),
            "last_login_at": None,
        }
        try:
            with border():
                await self._people.insert_one(document)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, DuplicateKeyError):
                raise _taken(name) from None
            raise
        return person_of(document)

    async def change(self, name: str, *, role: Role, tenant: str, enabled: bool) -> Person:
        """Raises Problem 404."""
        return await self._set(name, {"role": role.value, "tenant": tenant, "enabled": enabled})

    async def set_look(self, name: str, look: Look) -> Person:
        """How the console is shown to them. Raises Problem 404."""
        return await self._set(name, {"look": asdict(look)})

    async def remove(self, name: str) -> Document:
        """What `put_back` takes. Raises Problem 404."""
        with border():
            document = await self._people.find_one_and_delete({"_id": name})
        if document is None:
            raise nobody(name)
        return document

    async def put_back(self, document: Document) -> None:
        """Undo a removal, unless somebody else has the name by now."""
        with border():
            await self._people.update_one({"_id": document["_id"]}, {"$setOnInsert": document}, upsert=True)

    # -- passwords -----------------------------------------------------------------------------------------------------

    async def check_password(self, name: str, password: str) -> Person | None:
        """Who it is; None for a wrong password, a name that nobody has, somebody disabled or not yet set up: all take the same time.

        A hash of former parameters is made anew. Raises Problem 503 while too many wait.
        """
        document = await self._document(name)
        stored = document["password"] if document and document["enabled"] else ""
        if not await self._passwords.check(password, stored) or document is None:
            return None
        if self._passwords.outdated(stored):
            fresh = await self._passwords.hashed(password)
            with border():
                await self._people.update_one({"_id": name, "password": stored}, {"$set": {"password": fresh}})
        return person_of(document)

    async def set_password(self, name: str, password: str) -> Person:
        """Raises Problem 404, or 503 while too many wait."""
        return await self._set(name, {"password": await self._passwords.hashed(password)})

    async def logged_in(self, name: str) -> None:
        """Note the time."""
        with border():
            await self._people.update_one({"_id": name}, {"$set": {"last_login_at": self._clock.now_ms()}})

    # -- the second factor ---------------------------------------------------------------------------------------------

    async def set_totp(self, name: str, secret: str, code: str) -> list[str] | None:
        """Make `secret` (base32) theirs, proven by a code of it: their new recovery codes, in clear for this once. None: the code is wrong."""
        step = self._step_of(secret, code)
        if step is None:
            return None
        codes = [_recovery_code() for _ in range(_RECOVERY_CODES)]
        values = {"totp": self._seal.seal(secret), "step": step, "codes": [digest(code) for code in codes]}
        await self._set(name, values)
        return codes

    async def reset_totp(self, name: str) -> Person:
        """Without a second factor, until they set one at their next login. Raises Problem 404."""
        return await self._set(name, {"totp": "", "codes": []})

    async def renew_codes(self, name: str) -> list[str]:
        """New recovery codes in place of all former ones. Raises Problem 404."""
        codes = [_recovery_code() for _ in range(_RECOVERY_CODES)]
        await self._set(name, {"codes": [digest(code) for code in codes]})
        return codes

    async def take_code(self, name: str, code: str) -> bool:
        """Whether it is the authenticator's code of now (or of 30 s before or after), later than any that was taken before."""
        document = await self._document(name)
        if document is None or not document["totp"]:
            return False
        step = self._step_of(self._seal.open(document["totp"]), code)
        if step is None:
            return False
        with border():
            result = await self._people.update_one(
                {"_id": name, "totp": document["totp"], "step": {"$lt": step}}, {"$set": {"step": step}}
            )
        return result.modified_count == 1

    async def take_recovery_code(self, name: str, code: str) -> bool:
        """Whether it is an unused one; it is used now."""
        used = digest(_plain_code(code))
        with border():
            result = await self._people.update_one({"_id": name, "codes": used}, {"$pull": {"codes": used}})
        return result.modified_count == 1

    def _step_of(self, secret: str, code: str) -> int | None:
        """The period of 30 s whose code it is (RFC 6238, one step of drift either way)."""
        typed = "".join(code.split()).encode()
        totp = pyotp.TOTP(secret, interval=_PERIOD)
        now = self._clock.now_ms() // 1000 // _PERIOD
        steps = [
            step for step in (now - 1, now, now + 1) if hmac.compare_digest(totp.generate_otp(step).encode(), typed)
        ]
        return steps[0] if steps else None

    # -- documents -----------------------------------------------------------------------------------------------------

    async def _document(self, name: str) -> Document | None:
        with border():
            return await self._people.find_one({"_id": name})

    async def _set(self, name: str, values: Mapping[str, Any]) -> Person:
        with border():
            await self._people.update_one({"_id": name}, {"$set": dict(values)})
        document = await self._document(name)
        if document is None:
            raise nobody(name)
        return person_of(document)


def person_of(document: Document) -> Person:
    """As read."""
    return Person(
        name=document["_id"],
        role=Role(document["role"]),
        tenant=document["tenant"],
        enabled=document["enabled"],
        ready=bool(document["password"]),
        totp=bool(document["totp"]),
        recovery_codes=len(document["codes"]),
        created_at=document["created_at"],
        last_login_at=document["last_login_at"],
        look=Look(**document["look"]),
    )


def digest(secret: str) -> str:
    """SHA-256, hex: enough for what has at least 80 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _recovery_code() -> str:
    """80 random bits, in four groups: `abcd-efgh-ijkl-mnop`."""
    text = b32encode(secrets.token_bytes(10)).decode("ascii").lower()
    return "-".join(text[at : at + 4] for at in range(0, 16, 4))


def _plain_code(typed: str) -> str:
    text = "".join(char for char in typed.lower() if char.isascii() and char.isalnum())
    return "-".join(text[at : at + 4] for at in range(0, len(text), 4))


def _taken(name: str) -> Problem:
    return Problem(
        "already-exists",
        "The name is taken",
        409,
        f"There is somebody called {name!r} already.",
        "Choose another name; a new set-up link for that person is POST /v1/people/{name}/link.",
    )


def nobody(name: str) -> Problem:
    """404 for a name that nobody has."""
    return Problem(
        "not-found", "No such person", 404, f"Nobody is called {name[:70]!r}.", "GET /v1/people lists who there is."
    )
