"""May this region be stood up on these hosts? Pure: facts → problems (nothing is changed while there is one) and warnings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, time
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from infra.config import Host, Region
from infra.plan import Topology
from infra.survey import Facts, Survey

__all__ = ["drift", "memory", "problems", "warnings"]

_CLOCK_SECONDS = 2.0
_IMAGE_BYTES = 3 * 2**30
_PODMAN = (5, 4)
_DEBIAN = 13
_DAY = 86_400
_RENEW_DAYS = 30


def problems(region: Region, topology: Topology, survey: Survey, authority: str = "") -> list[str]:
    """One line for each thing that must be mended first, in the order of the hosts. `authority` is the PEM that is configured."""
    found = list(survey.problems)
    found += _certificates(region, survey)
    for host in region.hosts:
        if facts := survey.facts.get(host.name):
            found += [f"{host.name}: {problem}" for problem in _of_host(region, topology, host, facts, authority)]
    return found


def _lifetime(region: Region) -> tuple[float, float]:
    """Beginning and end of the region's certificates, seconds since the epoch."""
    begin = datetime.combine(region.certificates.not_before, time(), UTC).timestamp()
    return begin, begin + region.certificates.days * _DAY


def _certificates(region: Region, survey: Survey) -> Iterator[str]:
    """mongod does not start with a certificate that is over or has not begun."""
    clocks = [facts.values["time"] for facts in survey.facts.values()]
    begin, end = _lifetime(region)
    if clocks and begin > min(clocks):
        yield f"certificates.not_before: {region.certificates.not_before} is in the future; set today"
    if clocks and end < max(clocks):
        yield f"the certificates of {region.certificates.not_before} are over; set certificates.not_before to today"


def _of_host(region: Region, topology: Topology, host: Host, facts: Facts, authority: str) -> Iterator[str]:
    values = facts.values
    system = values["os"]
    if system["id"] != "debian" or int((system["version"] or "0").split(".")[0]) < _DEBIAN:
        yield f"runs {system['id'] or 'an unknown system'} {system['version']}; Heliograph is made for Debian {_DEBIAN} or newer"
        return
    if not values["systemd"]:
        yield "has no running systemd; quadlets need it"
    if not values["root"]:
        yield "the commands do not run as root; use root or a user who may sudo"
    if not values["cgroup2"]:
        yield "has no unified cgroup hierarchy (v2); boot it with systemd.unified_cgroup_hierarchy=1"
    if values["podman"] and tuple(int(part) for part in values["podman"].split(".")[:2]) < _PODMAN:
        yield f"has podman {values['podman']}; the units need {_PODMAN[0]}.{_PODMAN[1]} or newer"
    if abs(facts.clock_offset) > _CLOCK_SECONDS:
        yield f"its clock is {facts.clock_offset:+.1f} s off; start a time service (apt-get install chrony)"
    yield from _disk(region, values)
    yield from _ports(topology, host, values)
    yield from _data(topology, host, values)
    yield from _standing(topology, values, authority)


def _standing(topology: Topology, values: Mapping[str, Any], authority: str) -> Iterator[str]:
    """What stands there and must not be changed by an `up`."""
    planned = {f"mongod-{one.name}" for one in topology.sets}
    ours = f"mongod-{topology.region}-"
    for name in values["installed"]:
        if name.startswith(ours) and name not in planned:
            yield (
                f"carries a member of {name.removeprefix('mongod-')}, which is no longer in the configuration; a shard that goes must be emptied first, "
                "and `up` does not do that: put it back"
            )
    if authority and values["authority"] not in ("", hashlib.sha256(authority.encode()).hexdigest()):
        yield from _trust(values, authority)


def _trust(values: Mapping[str, Any], authority: str) -> Iterator[str]:
    """Members are restarted one at a time: whoever reads the new certificates already, and whoever does not yet, must believe each other meanwhile."""
    trusted = values.get("trusts", ())
    signs, *others = x509.load_pem_x509_certificates(authority.encode()) if trusted else [None]
    if signs is None or signs.fingerprint(hashes.SHA256()).hex() not in trusted:
        yield (
            "trusts another certificate authority than the configured one; replacing it at once would part the members: put the old one back "
            "(`heliograph ops rotate-certificates --scope authority` lets one follow another)"
        )
        return
    ours = {
        x509.AuthorityKeyIdentifier.from_issuer_public_key(one.public_key()).key_identifier for one in (signs, *others)
    }
    ours |= {
        found.value.digest
        for one in (signs, *others)
        for found in one.extensions
        if isinstance(found.value, x509.SubjectKeyIdentifier)
    }
    if set(values.get("signed_by", ())) - {one.hex() for one in ours if one}:
        yield "has certificates of an authority that the configuration trusts no more, and others still show theirs to it: put that one back into trustedAuthorities until all are renewed"


def _disk(region: Region, values: Mapping[str, Any]) -> Iterator[str]:
    installed = values["installed"]
    need = {region.mongodb.data: region.mongodb.min_free_gb * 2**30}
    if "image-mongod" not in installed:
        need["/var/lib/containers"] = min(_IMAGE_BYTES, max(need[region.mongodb.data], 2**30))
    for path, least in need.items():
        free = values["free"][path]
        if free < least:
            yield f"{path} has {free / 2**30:.1f} GiB free and needs {least / 2**30:.1f}; free some, or lower mongodb.min_free_gb if you know better"


def _ports(topology: Topology, host: Host, values: Mapping[str, Any]) -> Iterator[str]:
    for port, what in topology.ports(host.name).items():
        who = values["ports"].get(str(port))
        if who and not who.startswith("heliograph-"):
            yield f"port {port}, for {what}, is taken by {who}; stop it, or choose another port in the configuration"


def _data(topology: Topology, host: Host, values: Mapping[str, Any]) -> Iterator[str]:
    for replica_set in topology.sets:
        for member in replica_set.members:
            found = values["data"].get(member.set, {"used": False, "marker": None})
            if member.host != host.name or not (found["used"] or found["marker"]):
                continue
            marker = found["marker"]
            if marker is None:
                yield f"the data directory of {member.set} holds a database that Heliograph did not make; move it away, or set mongodb.data"
            elif marker != {"set": member.set, "member": member.endpoint}:
                yield (
                    f"the data directory of {member.set} belongs to {marker.get('member')} of {marker.get('set')}, not to {member.endpoint}; "
                    "a member never changes its address or port: put back what changed (a shard's `port`, its place in the list, *_port, the address). "
                    "Only if this one host was replaced and the set's other members are well, move the directory away: it syncs anew"
                )


def drift(survey: Survey) -> list[str]:
    """What was changed by hand on the hosts, or does not run."""
    return [
        f"{host}: {resource}: {what}"
        for host, facts in survey.facts.items()
        for resource, every in facts.drift().items()
        for what in every
    ]


def memory(region: Region, topology: Topology, survey: Survey) -> list[str]:
    """Hosts whose services may use more than there is."""
    found = []
    per_member = region.mongodb.cache_gb * 2048 + 1024
    for host in region.hosts:
        facts = survey.facts.get(host.name)
        if facts is None:
            continue
        members = sum(member.host == host.name for one in topology.sets for member in one.members)
        ledgers = sum(ledger.host == host.name for ledger in topology.ledgers)
        need = members * per_member + region.control_plane.nodes * 3072 + ledgers * 1024
        if need > facts.values["memory_mb"]:
            found.append(
                f"{host.name}: its services may use {need:.0f} MiB together and it has {facts.values['memory_mb']}"
            )
    return found


def warnings(region: Region, topology: Topology, survey: Survey) -> list[str]:
    """What does not stop an `up` but should be known."""
    found = memory(region, topology, survey)
    for host in region.hosts:
        facts = survey.facts.get(host.name)
        if facts is None:
            continue
        if not facts.values["time_kept"] and not facts.values["container"]:
            found.append(f"{host.name}: no time service keeps its clock; apt-get install chrony")
        left = (_lifetime(region)[1] - facts.values["time"]) / _DAY
        if left < _RENEW_DAYS:
            found.append(
                f"{host.name}: its certificates end in {left:.0f} days; set certificates.not_before to today and run `pulumi up`"
            )
        if facts.values["container"]:
            found.append(f"{host.name}: is a container; kernel settings and memory limits are its host's")
    return found
