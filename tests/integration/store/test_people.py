"""People, their proofs, sessions, set-up links and delays, on a real MongoDB."""

from __future__ import annotations

import asyncio

import pyotp
import pytest
from argon2 import PasswordHasher

from controlplane.domain.login import Counted, address_of, code_of, name_of
from controlplane.domain.people import Role, Stage
from controlplane.errors import Problem
from controlplane.store.invitations import INVITATIONS, Invitations
from controlplane.store.login_delays import LoginDelays
from controlplane.store.passwords import Passwords
from controlplane.store.people import PEOPLE, People
from controlplane.store.seal import Seal
from controlplane.store.sessions import SESSIONS, Sessions

PASSWORD = "a long walk on a short pier"


class Hands:
    """A clock that goes only when it is put forward."""

    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000

    def forward(self, **units: int) -> None:
        self.ms += sum(
            value * {"seconds": 1000, "minutes": 60_000, "hours": 3_600_000}[unit] for unit, value in units.items()
        )


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
async def people(database, settings, hands) -> People:
    return People(database, Seal(settings.secret), hands)


@pytest.fixture
async def sessions(database, settings, hands) -> Sessions:
    found = Sessions(database, Seal(settings.secret), hands)
    await found.ensure_indexes()
    return found


@pytest.fixture
async def delays(database, hands) -> LoginDelays:
    found = LoginDelays(database, hands)
    await found.ensure_indexes()
    return found


@pytest.fixture
async def links(database, hands) -> Invitations:
    found = Invitations(database, hands)
    await found.ensure_indexes()
    return found


async def ada(people: People) -> str:
    """A person who is set up; the secret of her authenticator."""
    await people.create("ada", Role.OPERATOR, "")
    await people.set_password("ada", PASSWORD)
    secret = pyotp.random_base32()
    assert await people.set_totp("ada", secret, pyotp.TOTP(secret).at(people._clock.now_ms() // 1000))
    return secret


class TestPasswords:
    """A password is stored as argon2id only, and nothing but the right one of an enabled person passes."""

    async def test_right_wrong_unknown_disabled(self, people):
        await ada(people)
        assert (await people.check_password("ada", PASSWORD)).name == "ada"
        assert await people.check_password("ada", PASSWORD + " ") is None
        assert await people.check_password("nobody", PASSWORD) is None
        await people.create("new", Role.VIEWER, "")
        assert await people.check_password("new", "") is None
        await people.change("ada", role=Role.OPERATOR, tenant="", enabled=False)
        assert await people.check_password("ada", PASSWORD) is None

    async def test_what_is_stored(self, people, database):
        secret = await ada(people)
        document = await database[PEOPLE].find_one({"_id": "ada"})
        assert document["password"].startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        assert secret not in str(document)
        assert len(document["codes"]) == 10

    async def test_a_hash_of_former_parameters_is_made_anew(self, people, database):
        await ada(people)
        old = PasswordHasher(time_cost=1, memory_cost=8_192, parallelism=1).hash(PASSWORD)
        await database[PEOPLE].update_one({"_id": "ada"}, {"$set": {"password": old}})
        assert await people.check_password("ada", PASSWORD)
        assert "m=19456,t=2,p=1" in (await database[PEOPLE].find_one({"_id": "ada"}))["password"]
        assert await people.check_password("ada", PASSWORD)

    async def test_a_name_is_taken_once(self, people):
        await people.create("ada", Role.VIEWER, "")
        with pytest.raises(Problem, match="already"):
            await people.create("ada", Role.ADMIN, "")

    async def test_nobodys_password_costs_what_anybodys_does(self, people, monkeypatch):
        """Whether a name exists cannot be told by the time: the same hash is computed."""
        await ada(people)
        verified = []
        plain = Passwords._verified
        monkeypatch.setattr(
            Passwords,
            "_verified",
            lambda self, stored, typed: verified.append(stored[:32]) or plain(self, stored, typed),
        )
        await people.check_password("ada", "wrong")
        await people.check_password("nobody", "wrong")
        assert len(verified) == 2
        assert verified[0].rpartition("$")[0] == verified[1].rpartition("$")[0]

    async def test_a_flood_waits_outside(self):
        passwords = Passwords()
        results = await asyncio.gather(*(passwords.check("x", "") for _ in range(60)), return_exceptions=True)
        refused = [one for one in results if isinstance(one, Problem)]
        assert len(refused) == 60 - 32
        assert refused[0].status == 503
        assert await passwords.check("x", "") is False  # later ones are looked at again


class TestTotp:
    """A code counts once, in its time; a recovery code counts once, ever."""

    async def test_replay(self, people, hands):
        totp = pyotp.TOTP(await ada(people))
        hands.forward(seconds=30)
        now = hands.ms // 1000
        assert not await people.take_code("ada", totp.at(now - 30)), "the code of the enrolment"
        assert await people.take_code("ada", totp.at(now))
        assert not await people.take_code("ada", totp.at(now)), "replayed"
        assert await people.take_code("ada", totp.at(now + 30)), "half a minute of drift"
        assert not await people.take_code("ada", totp.at(now)), "earlier than the last one"
        assert not await people.take_code("ada", totp.at(now + 90))
        assert not await people.take_code("ada", "")
        assert not await people.take_code("ada", "１２３４５６")

    async def test_of_many_at_once_one_counts(self, people, hands):
        totp = pyotp.TOTP(await ada(people))
        hands.forward(seconds=60)
        code = totp.at(hands.ms // 1000)
        assert sum(await asyncio.gather(*(people.take_code("ada", code) for _ in range(20)))) == 1

    async def test_recovery_codes(self, people, hands):
        await people.create("ada", Role.VIEWER, "")
        secret = pyotp.random_base32()
        codes = await people.set_totp("ada", secret, pyotp.TOTP(secret).at(hands.ms // 1000))
        assert len(set(codes)) == 10
        typed = codes[0].upper().replace("-", " ")
        assert sum(await asyncio.gather(*(people.take_recovery_code("ada", typed) for _ in range(10)))) == 1
        assert not await people.take_recovery_code("ada", "aaaa-aaaa-aaaa-aaaa")
        assert (await people.find("ada")).recovery_codes == 9
        fresh = await people.renew_codes("ada")
        assert not await people.take_recovery_code("ada", codes[1])
        assert await people.take_recovery_code("ada", fresh[0])

    async def test_a_wrong_first_code_sets_nothing(self, people):
        await people.create("ada", Role.VIEWER, "")
        assert await people.set_totp("ada", pyotp.random_base32(), "000000") is None
        assert not (await people.find("ada")).totp

    async def test_reset(self, people, hands):
        totp = pyotp.TOTP(await ada(people))
        hands.forward(seconds=60)
        await people.reset_totp("ada")
        assert not await people.take_code("ada", totp.at(hands.ms // 1000))
        assert not (await people.find("ada")).recovery_codes


class TestSessions:
    """A session ends when it was not used for half an hour, after eight hours, and whenever it shall; its cookie stands nowhere."""

    async def begin(self, people, sessions, stage=Stage.OPEN, former="") -> str:
        if await people.find("ada") is None:
            await ada(people)
        return await sessions.begin("ada", stage, address="192.0.2.1", agent="Browser/1", former=former)

    async def test_idle(self, people, sessions, hands):
        cookie = await self.begin(people, sessions)
        for _ in range(3):
            hands.forward(minutes=29)
            assert await sessions.visit(cookie)
        hands.forward(minutes=30)
        assert await sessions.visit(cookie) is None

    async def test_absolute(self, people, sessions, hands):
        cookie = await self.begin(people, sessions)
        for _ in range(31):
            hands.forward(minutes=15)
            assert await sessions.visit(cookie)
        hands.forward(minutes=15)
        assert await sessions.visit(cookie) is None

    async def test_half_a_login_is_short(self, people, sessions, hands):
        cookie = await self.begin(people, sessions, Stage.CODE)
        hands.forward(minutes=9)
        assert await sessions.visit(cookie)
        hands.forward(minutes=1)
        assert await sessions.visit(cookie) is None

    async def test_rotation(self, people, sessions):
        first = await self.begin(people, sessions, Stage.CODE)
        second = await self.begin(people, sessions, former=first)
        assert await sessions.visit(first) is None
        assert (await sessions.visit(second))[0].stage is Stage.OPEN

    async def test_the_cookie_is_not_stored(self, people, sessions, database):
        cookie = await self.begin(people, sessions)
        assert cookie not in str(await database[SESSIONS].find({}).to_list())

    async def test_the_role_is_todays(self, people, sessions):
        cookie = await self.begin(people, sessions)
        await people.change("ada", role=Role.VIEWER, tenant="sample", enabled=True)
        assert (await sessions.visit(cookie))[1].role is Role.VIEWER
        await people.change("ada", role=Role.VIEWER, tenant="sample", enabled=False)
        assert await sessions.visit(cookie) is None

    async def test_own_ones_can_be_ended(self, people, sessions):
        first, second, third = [await self.begin(people, sessions) for _ in range(3)]
        own = (await sessions.visit(first))[0].handle
        assert len(await sessions.of("ada")) == 3
        other = (await sessions.visit(second))[0].handle
        assert not await sessions.end_one("bob", other)
        assert await sessions.end_one("ada", other)
        assert await sessions.visit(second) is None
        assert await sessions.end_all("ada", but=own) == 1
        assert await sessions.visit(third) is None
        assert await sessions.visit(first)

    async def test_the_secret_of_an_enrolment_is_sealed(self, people, sessions, database):
        cookie = await self.begin(people, sessions, Stage.ENROL)
        await sessions.keep_secret(cookie, "JBSWY3DPEHPK3PXP")
        assert (await sessions.visit(cookie))[0].secret == "JBSWY3DPEHPK3PXP"
        assert "JBSWY3DPEHPK3PXP" not in str(await database[SESSIONS].find({}).to_list())


class TestLinks:
    """A set-up link works once, within a day, and is stored as a digest only."""

    async def test_once(self, links, database):
        token, made = await links.make("ada", Role.SENDER, "sample", "key_1")
        assert token not in str(await database[INVITATIONS].find({}).to_list())
        assert await links.find(token) == made
        assert sum(await asyncio.gather(*(links.use(token) for _ in range(10)))) == 1
        assert await links.find(token) is None

    async def test_a_day(self, links, hands):
        token, _ = await links.make("ada", Role.SENDER, "", "key_1")
        hands.forward(hours=24)
        assert await links.find(token) is None
        assert not await links.use(token)

    async def test_a_new_one_ends_the_former(self, links):
        first, _ = await links.make("ada", Role.SENDER, "", "key_1")
        other, _ = await links.make("bob", Role.SENDER, "", "key_1")
        second, _ = await links.make("ada", Role.SENDER, "", "key_1")
        assert await links.find(first) is None
        assert await links.find(second)
        assert await links.find(other)
        assert await links.find("") is None


class TestDelays:
    """Tries at once are no more than one after the other, delays grow to a bound, and strangers do not delay a known browser."""

    async def test_they_grow_to_a_bound(self, delays, hands):
        seen = []
        for _ in range(16):
            wait = await delays.count([name_of("ada", "")])
            seen.append(wait)
            hands.forward(seconds=wait)
            if wait:
                assert await delays.count([name_of("ada", "")]) == 0
        assert seen[:6] == [0] * 6
        assert seen[6:] == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]

    async def test_many_at_once(self, delays):
        waits = await asyncio.gather(*(delays.count([name_of("ada", "")]) for _ in range(40)))
        assert waits.count(0) == 6

    async def test_a_known_browser_is_counted_by_itself(self, delays):
        while await delays.count([name_of("ada", "")]) == 0:
            pass
        assert await delays.count([name_of("ada", "known")]) == 0
        assert await delays.count([name_of("bob", "")]) == 0

    async def test_success(self, delays, hands):
        office = address_of("2001:db8:1:2::5")
        for _ in range(40):
            assert await delays.count([office]) == 0
            await delays.take_back([office])
        for _ in range(6):
            await delays.count([name_of("ada", "")])
        await delays.clear([name_of("ada", "")])
        assert await delays.count([name_of("ada", "")]) == 0

    async def test_taking_back_ends_no_delay_of_others(self, delays):
        each = Counted("x", 0, 900)
        assert await delays.count([each]) == 0
        await delays.take_back([each])
        assert await delays.count([each]) == 1

    async def test_codes_are_fewer_than_passwords(self, delays, hands):
        tries = 0
        end = hands.ms + 24 * 3_600_000
        while hands.ms < end:
            hands.forward(seconds=await delays.count([code_of("ada", "")]))
            tries += 1
        assert tries < 80

    def test_addresses(self):
        assert address_of("2001:db8:1:2::5") == address_of("2001:db8:1:2:ffff::9")
        assert address_of("2001:db8:1:2::5") != address_of("2001:db8:1:3::5")
        assert address_of("192.0.2.1") != address_of("192.0.2.2")
        assert address_of("").key
