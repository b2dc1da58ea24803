"""What nodes have learned about routes, carried between datacenters: real MongoDB, real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from controlplane.ledger.exchange import Exchange
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.settings import Settings
from controlplane.store.routing_states import RoutingState, RoutingStates
from tests.simulators.ledgers import Site, peer_of, site


@pytest.fixture
async def sites(settings: Settings) -> AsyncIterator[tuple[Site, Site]]:
    async with site(settings, "fra") as fra, site(settings, "iad") as iad, iad.serving():
        yield fra, iad


async def test_what_is_new_comes_and_nothing_else(sites):
    fra, iad = sites
    here, there = RoutingStates(fra.database), RoutingStates(iad.database)
    await there.save(RoutingState("iad", "n1", 100, b"one"))
    await there.save(RoutingState("iad", "n2", 100, b"two"))
    await there.save(RoutingState("fra", "n1", 900, b"what iad holds of fra"))
    await here.save(RoutingState("fra", "n1", 200, b"mine"))
    async with fra.client(iad) as client:
        exchange = Exchange(here, client)
        assert await exchange.fetch() == 2
        assert await exchange.fetch() == 0
        await there.save(RoutingState("iad", "n1", 300, b"later"))
        assert await exchange.fetch() == 1
    found = {(item.dc, item.node): (item.at, item.state) for item in await here.newer({})}
    assert found == {("fra", "n1"): (200, b"mine"), ("iad", "n1"): (300, b"later"), ("iad", "n2"): (100, b"two")}


async def test_an_earlier_state_replaces_nothing(sites):
    states = RoutingStates(sites[0].database)
    for at, state in ((300, b"later"), (200, b"earlier"), (300, b"again")):
        await states.save(RoutingState("fra", "n1", at, state))
    assert await states.of("fra", "n1") == RoutingState("fra", "n1", 300, b"later")
    assert await states.newer({"fra/n1": 300}) == []


async def test_a_peer_that_is_away_is_said(sites):
    fra, _ = sites
    peer = peer_of("iad", "http://127.0.0.1:1")
    async with LedgerClient.of_peer(peer, fra.settings) as client:
        with pytest.raises(PeerError, match="iad"):
            await Exchange(RoutingStates(fra.database), client).fetch()
