"""Several nodes on one database: leases, epochs, adoption, unknown."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from controlplane.api.auth import act_for, relay
from controlplane.bootstrap import Node
from controlplane.clock import SystemClock
from controlplane.domain.events import Event, Kind
from controlplane.errors import ConfigError
from controlplane.ledger.lead import Leadership
from controlplane.store.committer import Committer
from controlplane.store.intents import read_attempted
from controlplane.store.leases import Checkpoint, HostLock, Lease, Terms, fresh_term
from controlplane.store.ledger import LEASE, LedgerStore
from controlplane.store.schema import TERMS
from tests.simulators.node import running_node


def draft(mid: str, k: int = 0) -> Event:
    return Event(
        mid=mid,
        k=k,
        tenant="t",
        kind=Kind.ACCEPTED if not k else Kind.CANCELLED,
        at=1,
        data={"to": "+49", "parts": 1},
        prev=None,
    )


class MovableClock(SystemClock):
    """The machine's wall clock, some time ahead."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms

    def forward(self, seconds: int) -> None:
        self.ahead_ms += 1000 * seconds


class TestCommitter:
    """One winner for each ordinal, and no gap in the sequence."""

    async def test_lost_races_are_told_and_filled(self, database):
        committers = [
            Committer(database, datacenter="dc", node=f"n{i}", epoch=1, clock=SystemClock()) for i in range(2)
        ]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(committer.run()) for committer in committers]
            mids = [f"{n:026d}" for n in range(200)]
            results = await asyncio.gather(*(c.append(draft(mid)) for mid in mids for c in committers))
            for committer in committers:
                await committer.drain()
            for task in tasks:
                task.cancel()
        won = [event for event in results if event is not None]
        assert len(won) == 200
        for node in ("n0", "n1"):
            qs = sorted(d["q"] for d in await database["events"].find({"n": node}).to_list())
            assert qs == list(range(1, 201))

    async def test_withdrawn_before_it_was_sent(self, database):
        committer = Committer(database, datacenter="dc", node="n", epoch=1, clock=SystemClock())
        ticket = committer.submit(draft("0" * 26))
        assert committer.withdraw(ticket)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(committer.run())
            assert await committer.append(draft("1" * 26)) is not None
            task.cancel()
        assert await database["events"].count_documents({}) == 1


class TestLeases:
    """The owner stops before anybody may follow."""

    async def test_a_silent_term_is_adopted_and_its_owner_fenced(self, database, settings):
        terms = Terms(database, settings, SystemClock())
        old = await terms.open("host-a")
        new = await terms.open("host-b")
        assert old.epoch < new.epoch
        assert await terms.adoptable(new) == []
        await asyncio.sleep(settings.lease_seconds + settings.lease_margin_seconds + 0.1)
        (dead,) = await terms.adoptable(new)
        assert not old.valid
        assert await terms.claim(dead, new) is not None
        await terms.renew(old, Checkpoint())
        assert old.fenced
        assert not old.valid

    async def test_a_proven_death_needs_no_wait(self, database, settings):
        terms = Terms(database, settings, SystemClock())
        old = await terms.open("same-host-and-boot")
        new = await terms.open("same-host-and-boot")
        assert [term.epoch for term in await terms.adoptable(new)] == [old.epoch]

    async def test_only_one_adopts(self, database, settings):
        terms = Terms(database, settings, SystemClock())
        old = await terms.open("h")
        first, second = await terms.open("h"), replace_node(await terms.open("x"))
        (dead,) = [term for term in await terms.adoptable(second) if term.epoch == old.epoch]
        claims = await asyncio.gather(terms.claim(dead, first), terms.claim(dead, second))
        assert sum(claim is not None for claim in claims) == 1

    async def test_a_restored_database_begins_no_term_again(self, database, settings):
        """A term that the backup does not know has written events, of which proofs are abroad."""
        clock = MovableClock()
        ledger = Leadership(LedgerStore(database), settings, clock, "host")
        names = (TERMS, LEASE)
        used, kept = set(), {name: [] for name in names}
        for started in range(6):
            used.add((await Terms(database, settings, clock).open("host")).epoch)
            used.add(-await ledger.acquire())
            if started == 2:
                kept = {name: await database[name].find({}).to_list() for name in names}
        assert len(used) == 12  # all of them within a second
        for name in names:
            await database[name].delete_many({})
            await database[name].insert_many(kept[name])
        clock.forward(60)
        epoch, term = (await Terms(database, settings, clock).open("host")).epoch, await ledger.acquire()
        assert epoch not in used
        assert -term not in used
        assert epoch == term == fresh_term(0, clock.now_ms())
        clock.forward(-3600)
        assert (await Terms(database, settings, clock).open("host")).epoch == epoch + 1

    @pytest.mark.parametrize("year", [2026, 2038, 2087])
    def test_terms_fit_where_they_are_packed(self, year):
        term = fresh_term(0, int(datetime(year, 12, 31, tzinfo=UTC).timestamp() * 1000))
        assert term << 32 | 2**32 - 1 < 2**63

    def test_two_processes_cannot_have_one_name(self, tmp_path):
        lock = HostLock(tmp_path, "n")
        with pytest.raises(ConfigError, match="HELIOGRAPH_NODE"):
            HostLock(tmp_path, "n")
        lock.release()
        HostLock(tmp_path, "n").release()


def replace_node(lease: Lease) -> Lease:
    return replace(lease, node="other")


class TestAdoption:
    """What a dead node left: unattempted is sent, attempted without outcome is unknown."""

    async def test_another_node_takes_over(self, node, carriers, settings, tmp_path):
        carrier = await carriers(suffix_rules=False)
        dead_settings = settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "two"})
        dead = await Node.open(dead_settings)
        fresh, attempted = f"{1:026d}", f"{2:026d}"
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(dead.committer.run()), group.create_task(dead.intents.run())]
            for mid, policy in ((fresh, "hold"), (attempted, "hold")):
                data = {
                    "to": "+4915112345678", "from": "", "body": f"m {mid}", "parts": 1, "class": "transactional", "encoding": "gsm7",
                    "expires_at": SystemClock().now_ms() + 600_000, "unknown_policy": policy, "price": 1, "currency": "EUR",
                    "planned_route": "sim", "plan": "",
                }  # fmt: skip
                made = Event(mid=mid, k=0, tenant="sample", kind=Kind.ACCEPTED, at=SystemClock().now_ms(), data=data)
                await dead.book.accept(made)
            await dead.intents.write([(attempted, 1, 1, "sim", "sim")])
            for task in tasks:
                task.cancel()
        assert await read_attempted(dead.database, "node-2", dead.lease.epoch, 0) == {(attempted, 1): (1, "sim", "sim")}
        await dead.close()
        await node.connect(carrier)
        taken = await node.reaches(fresh, "delivered", seconds=25)
        assert "adopted" in [event["kind"] for event in taken["timeline"]]
        lost = await node.reaches(attempted, "unknown")
        assert [event["kind"] for event in lost["timeline"]] == ["accepted", "unknown", "adopted"]
        assert carrier.exchange.counts["accepted"] == 1

    async def test_a_receipt_may_come_to_another_node(self, node, carriers, settings, tmp_path):
        """Row 28: the message is open on one node, its receipt is delivered to the other."""
        carrier = await carriers(receipt_ms="600")
        await node.connect(carrier)
        second = await Node.open(settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "two"}))
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(second.run(stop))
            await node.until(lambda: "sim" in second.binds.live)
            carrier.exchange.change(receipt_other_bind=True)
            ids = [(await node.send(body=f"m{n}"))["id"] for n in range(10)]
            for mid in ids:
                message = await node.reaches(mid, "delivered")
                nodes = {event["node"] for event in message["timeline"]}
                assert nodes == {"node-1", "node-2"}
            stop.set()
        await second.close()


class TestSlots:
    """Nodes that share an account with one bind take turns: no message waits for ever behind another node's bind."""

    async def test_row_28_nodes_take_turns(self, node, carriers, settings, tmp_path):
        await node.connect(await carriers(max_binds=1), max_binds=1)
        async with running_node(
            settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "two"})
        ) as second:
            mine, theirs = [], []
            for number in range(3):
                mine.append((await node.send(body=f"first {number}"))["id"])
                status, answer = await second.call(
                    "POST", "/v1/messages", json={"to": "+4915112345678", "body": f"second {number}"}, key=node.key
                )
                assert status == 202, answer
                theirs.append(answer["id"])
            for mid in (*mine, *theirs):
                await node.reaches(mid, "delivered", seconds=40)
            late = (await node.send(body="first again"))["id"]
            await node.reaches(late, "delivered", seconds=40)


class TestCancel:
    """Any node takes a cancel request; the message's owner decides."""

    async def test_another_node_asks_the_owner(self, node, carriers, settings, tmp_path):
        await node.connect(await carriers())
        later = datetime.fromtimestamp(SystemClock().now_ms() / 1000 + 3600, UTC).isoformat()
        waiting = (await node.send(send_at=later))["id"]
        delivered = (await node.send())["id"]
        await node.reaches(delivered, "delivered")
        async with running_node(
            settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "two"})
        ) as second:
            status, problem = await second.call("POST", f"/v1/messages/{delivered}/cancel", key=node.key)
            assert (status, problem["title"]) == (409, "Cannot be cancelled")
            status, _ = await second.call("POST", f"/v1/messages/{waiting}/cancel", key=node.other_key)
            assert status == 404
            status, message = await second.call("POST", f"/v1/messages/{waiting}/cancel", key=node.key)
            assert (status, message["status"]) == (200, "cancelled")
            assert node.node.book.get(waiting) is None

    async def test_for_a_person_of_the_console(self, node, carriers, settings, tmp_path):
        """Who it is goes along, sealed: what the console's node granted says nothing to another one."""
        await node.connect(await carriers())
        later = datetime.fromtimestamp(SystemClock().now_ms() / 1000 + 3600, UTC).isoformat()
        waiting = (await node.send(send_at=later))["id"]
        async with running_node(
            settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "two"})
        ) as second:
            services, path = second.node.app.state.services, f"/v1/messages/{waiting}/cancel"
            may, may_not = frozenset({"messages:read", "messages:write"}), frozenset({"messages:read"})
            with act_for(services, "ada", tenant="", own="sample", scopes=may_not) as reader:
                status, _ = await second.call("POST", path, headers={"authorization": reader})
                assert status == 403
                assert relay(services, reader, to="node-1", path=path) == reader
            with act_for(services, "ada", tenant="", own="other", scopes=may) as stranger:
                status, _ = await second.call("POST", path, headers={"authorization": stranger})
                assert status == 404
            with act_for(services, "ada", tenant="", own="sample", scopes=may) as sender:
                sealed = relay(services, sender, to="node-1", path=path)
                elsewhere = relay(services, sender, to="node-3", path=path)
                for wrong in (sealed[:-8] + "AAAAAAAA", elsewhere):
                    status, _ = await node.call("POST", path, headers={"authorization": wrong})
                    assert status == 401
                body = {"to": "+4915112340001", "body": "not what it is for"}
                status, _ = await node.call("POST", "/v1/messages", headers={"authorization": sealed}, json=body)
                assert status == 401
                status, message = await second.call("POST", path, headers={"authorization": sender})
            assert (status, message["status"]) == (200, "cancelled")

    async def test_an_owner_that_is_gone(self, node, carriers, settings, tmp_path):
        await node.connect(await carriers())
        later = datetime.fromtimestamp(SystemClock().now_ms() / 1000 + 3600, UTC).isoformat()
        mid = (await node.send(send_at=later))["id"]
        await node.node.database["terms"].update_one({"n": "node-1"}, {"$set": {"url": "http://127.0.0.1:1"}})
        async with running_node(
            settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "two"})
        ) as second:
            status, problem = await second.call("POST", f"/v1/messages/{mid}/cancel", key=node.key)
        assert (status, problem["type"].rsplit("/", 1)[-1]) == (503, "owner-unreachable")


class TestNewerVersion:
    """While a region is upgraded, nodes meet events of kinds that they do not know: their messages wait for a newer node, nothing else does."""

    async def test_nothing_ends(self, node, carriers, settings, database, tmp_path):
        await node.connect(await carriers())
        later = datetime.fromtimestamp(SystemClock().now_ms() / 1000 + 3600, UTC).isoformat()
        strange, plain = [(await node.send(send_at=later))["id"] for _ in range(2)]
        accepted = await database["events"].find_one({"_id": f"{strange}:0"})
        await database["events"].insert_one(accepted | {"_id": f"{strange}:1", "k": 1, "q": 999, "kind": "of_tomorrow"})
        status, _ = await node.call("POST", f"/v1/messages/{strange}/cancel")
        assert status == 500
        await node.until(lambda: node.node.lease.valid)  # a traceback of thousands of lines was printed meanwhile
        await node.reaches((await node.send())["id"], "delivered")
        node.stop.set()
        async with running_node(
            settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "two"})
        ) as second:
            await second.until(lambda: plain in second.node.book.open)
            assert strange not in second.node.book.open


class TestStop:
    """A clean stop leaves nothing unknown, and a restart goes on."""

    async def test_what_waits_is_sent_by_the_next_life(self, settings, database, carriers):
        carrier = await carriers(rate_limit=20.0)
        async with running_node(settings) as first:
            await first.seed()
            await first.connect(carrier, rate=40.0)
            ids = [(await first.send(body=f"m{n}"))["id"] for n in range(60)]
            await asyncio.sleep(0.5)
        async with running_node(settings) as second:
            second.key = first.key
            for mid in ids:
                message = await second.reaches(mid, "delivered", seconds=30)
                assert "unknown" not in [event["kind"] for event in message["timeline"]]
        assert carrier.exchange.counts["accepted"] == 60

    async def test_a_connector_replaced_under_load_loses_nothing(self, node, carriers):
        carrier = await carriers(response_ms="1-20")
        await node.connect(carrier)
        ids = []
        for number in range(120):
            ids.append((await node.send(body=f"m{number}"))["id"])
            if number % 40 == 20:
                old = node.node.catalog.snapshot.connectors["sim"]
                await node.node.catalog.put(replace(old, window=old.window + 1))
        for mid in ids:
            await node.reaches(mid, "delivered", seconds=30)
        assert carrier.exchange.counts["accepted"] == 120
