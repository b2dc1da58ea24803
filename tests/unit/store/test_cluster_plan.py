"""The way from one replica set configuration to another, without a MongoDB."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.errors import ConfigError
from controlplane.store.cluster.identity import check_identity, documents, members_of, moved
from controlplane.store.cluster.layout import State, compare, organizations
from controlplane.store.cluster.members import Probe
from controlplane.store.cluster.plan import differences, has_majority, next_step, plan, settle_ids
from controlplane.store.cluster.spec import ClusterSpec, Member, SetSpec, read


def member(identity, host=None, **values):
    return Member(id=identity, host=host or f"h{identity}:27018", **values)


def silent(identity, host=None):
    return member(identity, host, votes=0, priority=0)


def members(*ids):
    return tuple(member(each) for each in ids)


@st.composite
def configurations(draw, prefix=""):
    """Members that `check_set` accepts; the hosts of two ids never meet."""
    ids = draw(st.lists(st.integers(0, 11), min_size=1, max_size=9, unique=True))
    voters = draw(st.integers(0, (min(len(ids), 7) - 1) // 2)) * 2 + 1
    found = []
    for position, identity in enumerate(ids):
        votes = 1 if position < voters else 0
        priority = draw(st.sampled_from([0, 1, 2, 5])) if votes else 0
        hidden = draw(st.booleans()) if not priority else False
        host = f"{draw(st.sampled_from('xy'))}{identity}:27018"
        tags = draw(st.dictionaries(st.sampled_from(["dc", "host"]), st.sampled_from(["a", "b"]), max_size=2))
        found.append(Member(id=identity, host=host, priority=priority, votes=votes, hidden=hidden, tags=tags))
    if not any(each.priority for each in found):
        found[0] = found[0].model_copy(update={"priority": 1.0, "hidden": False})
    return tuple(draw(st.permutations(found)))


def voters(configuration):
    return {each.id for each in configuration if each.votes}


class TestPlan:
    """No majority of one configuration is without a member of each majority of the next, so nothing acknowledged is lost."""

    @settings(deadline=None)
    @given(configurations(), configurations(), st.sets(st.integers(0, 11)), st.none() | st.integers(0, 11))
    def test_every_way_is_safe_and_ends_at_the_desired(self, current, desired, at_new_address, primary):
        try:
            steps = plan(current, desired, moved=at_new_address, primary=primary)
        except ConfigError as refusal:
            assert "elected" in str(refusal)
            return
        before = current
        for step in steps:
            old, new = voters(before), voters(step.members)
            assert len(old ^ new) <= 1
            # any majority of old and any of new share a voter
            assert (len(old) // 2 + 1) + (len(new) // 2 + 1) > len(old | new)
            assert 1 <= len(new) <= 7
            assert any(each.priority > 0 for each in step.members)
            assert (
                len({each.id for each in step.members})
                == len({each.host for each in step.members})
                == len(step.members)
            )
            assert all(each.votes or not each.priority for each in step.members)
            assert all(not each.hidden or not each.priority for each in step.members)
            assert step.lowers == bool(old - new)
            assert (step.ready is not None) == bool(new - old)
            assert step.members != before
            before = step.members
        assert not differences(before, desired)
        assert {each.id: each for each in before} == {each.id: each for each in desired}
        assert next_step(before, desired) is None

    @settings(deadline=None, max_examples=50)
    @given(configurations(), configurations())
    def test_a_run_that_was_cut_arrives_too(self, current, desired):
        try:
            steps = plan(current, desired)
        except ConfigError:
            return
        for step in steps:
            assert [each.members for each in plan(step.members, desired)][-1:] in ([], [steps[-1].members])

    @settings(deadline=None)
    @given(configurations())
    def test_nothing_to_do(self, configuration):
        assert plan(configuration, tuple(reversed(configuration))) == []

    def test_who_is_added_votes_last(self):
        steps = plan(members(0, 1, 2), members(0, 1, 2, 3, 4))
        assert [(step.change, step.host, step.ready) for step in steps] == [
            ("added", "h3:27018", None),
            ("added", "h4:27018", None),
            ("votes", "h3:27018", 3),
            ("votes", "h4:27018", 4),
        ]

    def test_the_primary_leaves_last(self):
        steps = plan(members(0, 1, 2, 3, 4), members(2, 3, 4), primary=0)
        assert [(step.change, step.host) for step in steps] == [("removed", "h1:27018"), ("removed", "h0:27018")]

    def test_who_is_replaced_gives_its_vote_back_first(self):
        steps = plan(members(0, 1, 2), (member(0), member(1), member(2, "new:27018")))
        assert [step.change for step in steps] == ["silenced", "replaced", "votes"]

    def test_who_only_moved_keeps_its_vote(self):
        steps = plan(members(0), (member(0, "new:27018"),), moved=frozenset({0}))
        assert [step.change for step in steps] == ["moved"]

    def test_seven_voters_make_room_first(self):
        steps = plan(members(*range(7)), members(*range(1, 8)))
        assert [step.change for step in steps] == ["added", "removed", "votes"]

    def test_the_only_voter_cannot_be_replaced(self):
        with pytest.raises(ConfigError, match="elected"):
            plan(members(0), (member(0, "new:27018"),))

    def test_an_id_stays(self):
        with pytest.raises(ConfigError, match="id 0 in the set and is declared with id 5"):
            plan(members(0, 1, 2), (member(5, "h0:27018"), member(1), member(2)))

    def test_majority_counts_voters_only(self):
        four = (*members(0, 1, 2), silent(3))
        assert has_majority(four, {0, 1})
        assert not has_majority(four, {0, 3})

    def test_what_cannot_be_declared_stays(self):
        config = {"members": [{"_id": 0, "host": "h0:27018", "secondaryDelaySecs": 5, "newlyAdded": True}]}
        (found,) = documents(members_of(config), config)
        assert found["secondaryDelaySecs"] == 5
        assert "newlyAdded" not in found
        assert found["votes"] == 1


def declared(*those, **values):
    return SetSpec(set="fra-a", members=those or members(0, 1, 2), **values)


def says(host, *hosts, name="fra-a", identity="a", me=None, version=1, **more):
    config = {
        "_id": name,
        "term": 1,
        "version": version,
        "settings": {"replicaSetId": identity},
        "members": [{"_id": number, "host": each} for number, each in enumerate(hosts)],
    } | more
    return Probe(host, {"setName": name, "me": me or host}, config)


class TestIdentity:
    """Two sets never merge, and what is not ours is not touched."""

    def test_alone_is_adopted(self):
        check_identity(declared(), [says("h0:27018", "h0:27018"), Probe("h1:27018", {}), Probe("h2:27018", why="down")])

    @pytest.mark.parametrize(
        ("probes", "words"),
        [
            ([says("h0:27018", "h0:27018", name="muc-a")], "h0:27018 belongs to the replica set muc-a, declared is fra-a"),
            ([says("h2:27018", "x:1", "y:1", "h2:27018")], "most of them are not declared"),
            ([says("h0:27018", "h0:27018", configsvr=True)], "is a config server's"),
            ([Probe("h0:27018", {}, standalone=True)], "runs without a replica set"),
            ([Probe("h0:27018", {"msg": "isdbgrid"}, standalone=True)], "is a router"),
            (
                [says("h0:27018", "h0:27018", "h1:27018"), says("h1:27018", "h0:27018", "h1:27018"), says("h2:27018", "h2:27018", identity="b")],
                "h2:27018 was initiated apart from the others",
            ),
        ],
    )  # fmt: skip
    def test_a_stranger_is_named(self, probes, words):
        with pytest.raises(ConfigError, match=words) as caught:
            check_identity(declared(), probes)
        assert "Nothing was changed" in str(caught.value)

    def test_a_member_at_another_address_is_known_by_its_own_word(self):
        probe = says("h0:27018", "old:27018", me="old:27018")
        assert moved({"h0:27018": probe}, members_of(probe.config), members(0)) == {0}
        check_identity(declared(), [probe])


class TestSpec:
    """What would lose its majority by its shape is refused before a connection is made."""

    @pytest.mark.parametrize(
        ("those", "words"),
        [
            ([{"id": 0}, {"id": 1}], "2 voters"),
            ([{"id": 0}, {"id": 0, "host": "x:1"}, {"id": 2}], "id 0 twice"),
            ([{"id": 0}, {"id": 1, "host": "h0:1"}, {"id": 2}], "host h0:1 twice"),
            ([{"id": each} for each in range(8)], "8 voters"),
            ([{"id": each} for each in range(9)], "9 voters"),
            ([{"id": 0, "priority": 0}], "no member that could be elected"),
            ([{"id": 0, "hidden": True}], "priority 0"),
            ([{"id": 0}, {"id": 1, "votes": 0}], "priority 0"),
            ([{"id": 0, "host": "no-port"}], "members/0/host"),
            ([{"id": 0, "color": "red"}], "members/0/color"),
        ],
    )
    def test_refused(self, those, words):
        listed = [{"host": f"h{each['id']}:1"} | each for each in those]
        with pytest.raises(ConfigError, match=words):
            read(SetSpec, json.dumps({"set": "a", "members": listed}))

    def test_no_json(self):
        with pytest.raises(ConfigError, match="not JSON"):
            read(SetSpec, "set: a")


_SPEC = ClusterSpec.model_validate(
    {
        "routers": ["r:27017"],
        "shards": [{"name": "fra-a", "members": ["a0:1", "a1:1"]}],
        "database": "heliograph",
        "collections": {"events": {"key": {"mid": "hashed"}}},
        "users": [{"user": "CN=node,O=heliograph-fra", "roles": [{"role": "readWrite", "db": "heliograph"}]}],
    }
)
_EMPTY = State({}, {"defaultWriteConcern": {"w": 1}}, frozenset(), {}, {})
_DONE = State(
    {"fra-a": {"_id": "fra-a", "host": "fra-a/a0:1,a1:1", "state": 1}},
    {"defaultWriteConcern": {"w": "majority", "wtimeout": 0}, "defaultWriteConcernSource": "global"},
    frozenset({"heliograph"}),
    {"heliograph.events": {"key": {"mid": "hashed"}}},
    {"CN=node,O=heliograph-fra": frozenset({("readWrite", "heliograph")})},
)


class TestLayout:
    """Nothing is removed, nothing resharded: what would move data is refused."""

    def test_all_that_is_missing_in_order(self):
        layout = compare(_SPEC, _EMPTY)
        assert [next(iter(action.command)) for action in layout.actions] == [
            "setDefaultRWConcern",
            "addShard",
            "enableSharding",
            "shardCollection",
            "createUser",
        ]
        assert not layout.refusals + layout.findings

    def test_nothing_is_missing(self):
        layout = compare(_SPEC, _DONE)
        assert not layout.actions + layout.refusals + layout.findings

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"shards": _DONE.shards | {"fra-b": {"host": "fra-b/b0:1"}}}, "use the drain operation"),
            ({"shards": {"fra-a": {"host": "fra-a/z:1"}}}, "with other hosts"),
            ({"shards": {"old": {"host": "old/a0:1", "draining": True}}}, "in the cluster as old"),
            ({"collections": {"heliograph.events": {"key": {"mid": 1.0}}}}, "is sharded by {mid: 1}, declared is {mid: hashed}"),
        ],
    )  # fmt: skip
    def test_refused(self, change, words):
        from dataclasses import replace

        assert words in " ".join(compare(_SPEC, replace(_DONE, **change)).refusals)

    def test_users(self):
        from dataclasses import replace

        users = {
            "CN=node,O=heliograph-fra": frozenset(),
            "CN=old,O=heliograph-fra": frozenset(),
            "CN=x,O=else": frozenset(),
        }
        layout = compare(_SPEC, replace(_DONE, users=users))
        assert [next(iter(action.command)) for action in layout.actions] == ["updateUser"]
        assert len(layout.findings) == 1
        assert "CN=old" in layout.findings[0]

    def test_organizations(self):
        assert organizations("CN=node,OU=heliograph-client,O=heliograph-fra") == {"heliograph-fra"}
        assert organizations("not a name") == frozenset()


class TestIds:
    """Who numbers members by their position may take one out of the middle: nobody who stays gets another's id."""

    def test_one_leaves_from_the_middle_and_one_comes(self):
        declared = (member(0, "h0:27018"), member(1, "h2:27018"), member(2, "h3:27018"))
        assert {each.host: each.id for each in settle_ids(members(0, 1, 2), declared)} == {
            "h0:27018": 0,
            "h2:27018": 2,
            "h3:27018": 3,
        }

    def test_a_host_takes_the_place_of_one_that_is_gone(self):
        declared = (member(0), member(1, "new:27018"), member(2))
        assert [each.id for each in settle_ids(members(0, 1, 2), declared)] == [0, 1, 2]

    def test_who_comes_for_one_that_is_well_gets_an_id_of_its_own(self):
        """So that it votes before the other one leaves: no step takes a vote away while there are fewer than were declared."""
        declared = (member(0), member(1, "new:27018"), member(2))
        settled = settle_ids(members(0, 1, 2), declared, apart={1})
        assert [each.id for each in settled] == [0, 3, 2]
        steps = plan(members(0, 1, 2), settled)
        assert [step.change for step in steps] == ["added", "votes", "removed"]
        assert steps[1].ready == 3
        assert all(sum(each.votes for each in step.members) >= 3 for step in steps)
        assert settle_ids(steps[-1].members, declared, apart=set()) == settled

    def test_before_the_set_is_initiated(self):
        assert settle_ids((), members(0, 1, 2)) == members(0, 1, 2)

    @given(configurations(), configurations())
    def test_ids_are_unique_and_hosts_keep_theirs(self, current, declared):
        settled = settle_ids(current, declared)
        assert len({each.id for each in settled}) == len(declared)
        known = {each.host: each.id for each in current}
        assert all(each.id == known.get(each.host, each.id) for each in settled)
        assert [each.host for each in settled] == [each.host for each in declared]
        assert settle_ids(settled, declared) == settled
