"""Kills a sequencer, again and again, at every step and at every database command of its rounds; run as a program by test_crash.

Each trial is a forked child (imports and all stay in the parent, so that a trial takes some 50 ms): it inserts events, takes the term, sequences, and is
ended by SIGKILL where the trial says. In some trials it is stopped there instead, another leader goes on, and it is woken up again.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from functools import partial

from pydantic import SecretStr
from pymongo import monitoring

from controlplane.clock import SystemClock
from controlplane.domain.events import Event, Kind, commitment, committed_payload, leaf_bytes
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.note import Verifier, parse_note, verify
from controlplane.ledger.sequencer import Sequencer
from controlplane.settings import Settings
from controlplane.store import client
from controlplane.store.committer import Committer
from controlplane.store.ledger import LedgerStore, StaleWriterError
from controlplane.store.schema import TERMS, ensure_indexes

STEPS = ("gathered", "staged", "checked", "signed", "committed")
COMMANDS = 18
"""A take-over with one round sends about this many."""
DC, NODE = "local", "node-1"


def _end_self(number):
    os.kill(os.getpid(), number)


class Doom(monitoring.CommandListener):
    """Ends this process before or after its n-th command once armed."""

    def __init__(self):
        self.left = -1
        self.before = False
        self.end = partial(_end_self, signal.SIGKILL)

    def started(self, _event):
        if self.left >= 0 and self.before:
            self._count()

    def succeeded(self, _event):
        if self.left >= 0 and not self.before:
            self._count()

    failed = succeeded

    def _count(self):
        self.left -= 1
        if self.left < 0:
            self.end()


DOOM = Doom()


def settings(uri, database):
    return Settings(
        mongodb_uri=uri,
        database=database,
        secret_key="s" * 32,
        ledger_key=SecretStr(base64.b64encode(bytes(32)).decode()),
    )


def events(first, count):
    for q in range(first, first + count):
        event = Event(
            f"m{q}", 0, "t", Kind.ACCEPTED, q, {"to": str(q), "body": "x" * (q % 100)}, dc=DC, node=NODE, epoch=1, q=q
        )
        event.salt = q.to_bytes(16, "big")
        event.leaf = leaf_bytes(event, commitment(event.salt, committed_payload(event)))
        yield event


async def prepare(config):
    database = client.connect(config)
    await ensure_indexes(database)
    await LedgerStore(database).ensure_indexes()
    await database[TERMS].insert_one({"_id": f"{NODE}:1", "n": NODE, "e": 1, "state": "live"})
    await database.client.close()


async def lead(config, term, first, count, arm):
    """What a ledger does that has just become the leader: take over, sequence what there is."""
    database = client.connect(config)
    store = LedgerStore(database)
    await store.put_events(list(events(first, count)))
    committer = Committer(database, datacenter=DC, node="ledger", epoch=term, clock=SystemClock())
    at = arm()
    sequencer = Sequencer(store, committer, config, SystemClock(), term=term, at=at)
    try:
        await sequencer.open()
        while await sequencer.round():
            pass
    except StaleWriterError:
        return
    finally:
        await database.client.close()


def child(main):
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            asyncio.run(main())
        except (StoreUnavailableError, KeyError) as error:
            print(repr(error), file=sys.stderr)
            code = 3
        finally:
            os._exit(code)
    return pid


async def look(config):
    """(size, root, signed) of every log, and whether the signature holds."""
    database = client.connect(config)
    found = []
    for log in await LedgerStore(database).logs(own=True):
        if log.checkpoint:
            note = parse_note(log.checkpoint)
            verify(note, [Verifier.parse(log.vkey)])
            checkpoint = Checkpoint.parse(note.text)
            assert (checkpoint.size, checkpoint.root) == (log.size, log.root)
        found.append([log.origin, log.size, base64.b64encode(log.root).decode()])
    await database.client.close()
    return found


def looked(config):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.write(write, json.dumps(asyncio.run(look(config))).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0, "what is published does not verify"
    return json.loads(text)


def main(uri, database, trials, seed):
    config = settings(uri, database)
    asyncio.run(prepare(config))
    monitoring.register(DOOM)
    chance = random.Random(seed)
    seen = set()
    kills = Counter()
    q = 1
    term = 0
    for trial in range(trials):
        count = chance.choice((1, 3, 17, 40, 90))
        term += 1
        stopped = chance.random() < 0.12
        how = ("step", "command", "delay")[trial % 3]
        ending = signal.SIGSTOP if stopped else signal.SIGKILL
        end = partial(_end_self, ending)
        read, write = os.pipe()
        number, before, which = trial // 3 % COMMANDS, chance.random() < 0.5, STEPS[trial // 3 % len(STEPS)]

        def arm(how=how, number=number, before=before, which=which, end=end, write=write):
            os.write(write, b"!")
            if how == "command":
                DOOM.left, DOOM.before, DOOM.end = number, before, end
            return lambda step: end() if how == "step" and step == which else None

        pid = child(lambda term=term, q=q, count=count, arm=arm: lead(config, term, q, count, arm))
        os.close(write)
        if how == "delay":
            os.read(read, 1)
            time.sleep(chance.uniform(0, 0.02))
            os.kill(pid, ending)
        os.close(read)
        _, status = os.waitpid(pid, os.WUNTRACED)
        where = (
            which
            if how == "step"
            else f"command {number} {'before' if before else 'after'}"
            if how == "command"
            else "random"
        )
        kills[
            f"{'stopped' if os.WIFSTOPPED(status) else 'killed' if os.WIFSIGNALED(status) else 'survived'} {where}"
        ] += 1
        assert os.WIFSTOPPED(status) or os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
        q += count
        if os.WIFSTOPPED(status):  # another leads meanwhile, for one more round
            term += 1
            os.waitpid(child(lambda term=term, q=q: lead(config, term, q, 5, lambda: lambda _step: None)), 0)
            q += 5
            os.kill(pid, signal.SIGCONT)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, -9)
        seen |= {tuple(item) for item in looked(config)}
    os.waitpid(child(lambda: lead(config, term + 1, q, 1, lambda: lambda _step: None)), 0)
    seen |= {tuple(item) for item in looked(config)}
    print(json.dumps({"events": q, "seen": sorted(seen), "kills": kills, "terms": term + 1}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
