"""Topology → the texts that go onto the hosts. Pure: the same region gives the same bytes; golden tests and podman's own generator check them."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from infra.config import Region
from infra.plan import CARRIER_PORT, Ledger, Member, Node, ReplicaSet, Router, Topology

__all__ = [
    "DATA_UID",
    "NODE_UID",
    "Bundle",
    "File",
    "carrier",
    "host",
    "ledger",
    "ledger_settings",
    "member",
    "node",
    "router",
    "set_spec",
    "shard_spec",
]

TEMPLATES = Path(__file__).parent.parent / "templates"
QUADLETS = "/etc/containers/systemd"
DATA_UID, NODE_UID = 26001, 26002
"""Of the users `heliograph-data` (mongod, mongos) and `heliograph` (everything else), on every host."""
DATA_USER, NODE_USER = "heliograph-data", "heliograph"


@dataclass(frozen=True, slots=True)
class File:
    """One file on a host. `prepend` names a file of the host (a private key) that goes before the content there."""

    path: str
    content: str
    mode: str = "644"
    owner: str = ""
    prepend: str = ""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one resource puts onto a host: the specification of `hostctl install`, without token."""

    name: str
    files: tuple[File, ...] = ()
    units: tuple[str, ...] = ()
    directories: tuple[Mapping[str, str], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """users, packages, kernel, reload, markers, purge, guard."""

    def as_spec(self) -> dict[str, Any]:
        """The JSON document for `hostctl install`."""
        files = [
            {name: getattr(f, name) for name in ("path", "content", "mode", "owner", "prepend") if getattr(f, name)}
            for f in self.files
        ]
        return {
            "name": self.name,
            "files": files,
            "units": list(self.units),
            "directories": [dict(d) for d in self.directories],
            **self.extra,
        }


@cache
def _environment() -> Environment:
    return Environment(  # noqa: S701 - configuration files, not HTML
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=False,
        lstrip_blocks=True,
    )


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


def host(region: Region, topology: Topology, name: str) -> Bundle:
    """Users, packages, kernel, firewall, journal of one host."""
    big_pages = region.mongodb.version.startswith("8")
    addresses = [h.address for h in region.hosts]
    inner = sorted(
        {m.port for s in topology.sets for m in s.members if m.host == name}
        | {r.port for r in topology.routers if r.host == name}
        | ({CARRIER_PORT} if topology.carrier == name else set())
    )
    api = sorted(n.port for n in topology.nodes if n.host == name)
    kernel = {
        "vm.max_map_count": 262144,
        "net.ipv4.tcp_keepalive_time": 120,
        "vm.swappiness": 1,
        "net.core.somaxconn": 4096,
    }
    mode = "always" if big_pages else "never"
    firewall = _render(
        "etc/firewall.nft.j2",
        inner=inner,
        api=api,
        ledger=sorted(one.port for one in topology.ledgers if one.host == name),
        region=addresses,
        peers=_apart([*addresses, *(network for peer in region.ledger.peers for network in peer.networks)]),
        allow=region.control_plane.allow,
    )
    return Bundle(
        "host",
        files=(
            File("/usr/local/lib/heliograph/listening", _text("etc/listening.sh"), "755"),
            File("/etc/sysctl.d/90-heliograph.conf", "".join(f"{key} = {value}\n" for key, value in kernel.items())),
            File("/etc/systemd/journald.conf.d/heliograph.conf", _text("etc/journald.conf")),
            File("/etc/heliograph/firewall.nft", firewall),
            File("/etc/systemd/system/heliograph-firewall.service", _render("etc/firewall.service.j2")),
            File(
                "/etc/systemd/system/heliograph-hugepages.service",
                _render("etc/hugepages.service.j2", mode=mode, version=region.mongodb.version),
            ),
        ),
        units=("heliograph-firewall.service", "heliograph-hugepages.service"),
        directories=(
            {"path": "/etc/containers/systemd"},
            {"path": region.mongodb.data, "mode": "711"},
            {"path": "/etc/heliograph"},
        ),
        extra={
            "users": [{"name": DATA_USER, "uid": DATA_UID}, {"name": NODE_USER, "uid": NODE_UID}],
            "packages": ["podman", "nftables", "openssl", "iproute2"],
            "kernel": kernel,
            "reload": ["systemd-journald.service"],
            "enable": ["heliograph-firewall.service", "heliograph-hugepages.service"],
            "reloadable": ["heliograph-firewall.service"],
            "probes": [["nft", "list", "table", "inet", "heliograph"]],
        },
    )


def _apart(networks: Iterable[str]) -> list[str]:
    """Without what another of them holds already: nft refuses sets that overlap."""
    known = sorted({ipaddress.IPv4Network(network) for network in networks})
    found = [one for one in known if not any(one != other and one.subnet_of(other) for other in known)]
    return [str(one).removesuffix("/32") for one in found]


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def member(region: Region, replica_set: ReplicaSet, one: Member) -> Bundle:
    """One mongod. It is restarted only while its set stands without it."""
    mongodb = region.mongodb
    data, config = f"{mongodb.data}/{one.set}", f"/etc/heliograph/mongod/{one.set}.conf"
    quadlet = _render(
        "quadlets/heliograph-mongod.container.j2",
        member=one,
        certificates=generation(region),
        image=mongodb.image.reference,
        uid=DATA_UID,
        config=config,
        data=data,
        rseq_off=mongodb.version.startswith("8"),
        memory_mb=int(mongodb.cache_gb * 2048) + 1024,
    )
    conf = _render(
        "etc/mongod.conf.j2", member=one, role=replica_set.role, cache_gb=mongodb.cache_gb, oplog_mb=mongodb.oplog_mb
    )
    return Bundle(
        f"mongod-{one.set}",
        files=(File(config, conf), File(f"{QUADLETS}/{one.unit}.container", quadlet)),
        units=(f"{one.unit}.service",),
        directories=({"path": data, "mode": "700", "owner": DATA_USER},),
        extra={
            "markers": {f"{data}/heliograph.json": {"set": one.set, "member": one.endpoint}},
            "purge": [data] if region.purge else [],
            "guard": {
                step: cluster_run(
                    verb, {"set": one.set, "member": one.endpoint, "members": [m.endpoint for m in replica_set.members]}
                )
                for step, verb in (("before", "release"), ("after", "rejoined"))
            },
        },
    )


def router(region: Region, topology: Topology, one: Router) -> Bundle:
    """The mongos of a host."""
    config_db = f"{topology.config_set.name}/" + ",".join(m.endpoint for m in topology.config_set.members)
    quadlet = _render(
        "quadlets/heliograph-router.container.j2",
        certificates=generation(region),
        router=one,
        image=region.mongodb.image.reference,
        uid=DATA_UID,
    )
    return Bundle(
        "router",
        files=(
            File("/etc/heliograph/mongod/router.conf", _render("etc/mongos.conf.j2", router=one, config_db=config_db)),
            File(f"{QUADLETS}/heliograph-router.container", quadlet),
        ),
        units=("heliograph-router.service",),
    )


def generation(region: Region) -> str:
    """Changes when the certificates or the trusted authorities do: services read them at their start."""
    known = region.certificates
    rotated = f"-{known.serial}.{known.trust}" if known.serial or known.trust else ""
    return f"{known.not_before}-{known.days}{rotated}"


def key_generation(region: Region) -> str:
    """Changes when the hosts are to make new private keys."""
    known = region.certificates
    return known.not_before.isoformat() + (f"-{known.serial}" if known.serial else "")


def mongodb_uri(topology: Topology, host_name: str, role: str = "node") -> str:
    """For the nodes, or the ledger, of a host: its own router first, the others behind it; x509."""
    routers = sorted(topology.routers, key=lambda r: r.host != host_name)
    options = {
        "tls": "true",
        "tlsCAFile": "/etc/heliograph/tls/ca.pem",
        "tlsCertificateKeyFile": f"/etc/heliograph/tls/{role}.pem",
        "authMechanism": "MONGODB-X509",
        "authSource": "$external",
    }
    return f"mongodb://{','.join(r.endpoint for r in routers)}/?" + "&".join(
        f"{key}={quote(value, safe='/')}" for key, value in options.items()
    )


def node_base() -> Bundle:
    """What the nodes of a host share, besides their secret key: it outlives each of them."""
    state = "/var/lib/heliograph/node"  # locks only
    directories = ({"path": "/etc/heliograph/node"}, {"path": state, "mode": "700", "owner": NODE_USER})
    return Bundle("secret-key", directories=directories, extra={"purge": [state]})


def node(region: Region, topology: Topology, one: Node) -> Bundle:
    """One node."""
    env = _render(
        "etc/node.env.j2",
        node=one,
        region=region.name,
        uri=mongodb_uri(topology, one.host),
        log_level=region.control_plane.log_level,
        **ledger_settings(region),
    )
    quadlet = _render(
        "quadlets/heliograph-node.container.j2",
        certificates=generation(region),
        node=one,
        image=region.control_plane.image.reference,
        uid=NODE_UID,
        memory_mb=3072,
    )
    return Bundle(
        f"node-{one.number}",
        files=(
            File(f"/etc/heliograph/node/{one.name}.env", env),
            File(f"{QUADLETS}/heliograph-node-{one.number}.container", quadlet),
        ),
        units=(f"heliograph-node-{one.number}.service",),
    )


def ledger_settings(region: Region) -> dict[str, Any]:
    """What nodes and ledgers know alike of the logs, as they take it from their environment."""
    peers = [
        {
            "dc": peer.name,
            "urls": peer.urls,
            "log_keys": peer.log_keys,
            "witness_key": peer.witness_key,
            "mirror_key": peer.mirror_key,
        }
        for peer in region.ledger.peers
    ]
    witnesses = [{"url": witness.url, "vkey": witness.vkey} for witness in region.ledger.witnesses]
    return {"ledger": region.ledger, "peers": json.dumps(peers), "witnesses": json.dumps(witnesses)}


def ledger(region: Region, topology: Topology, one: Ledger) -> Bundle:
    """The ledger of a host, but for its key."""
    env = _render(
        "etc/ledger.env.j2",
        one=one,
        region=region.name,
        uri=mongodb_uri(topology, one.host, "ledger"),
        log_level=region.control_plane.log_level,
        **ledger_settings(region),
    )
    quadlet = _render(
        "quadlets/heliograph-ledger.container.j2",
        certificates=generation(region),
        one=one,
        image=region.control_plane.image.reference,
        uid=NODE_UID,
    )
    state = "/var/lib/heliograph/ledger"  # locks only
    authorities = "# Of the region itself above, of its peers below.\n" + "".join(
        peer.authority for peer in region.ledger.peers
    )
    return Bundle(
        "ledger",
        files=(
            File("/etc/heliograph/ledger/ledger.env", env),
            File("/etc/heliograph/ledger/authorities.pem", authorities, prepend="/etc/heliograph/tls/ca.pem"),
            File(f"{QUADLETS}/heliograph-ledger.container", quadlet),
        ),
        units=("heliograph-ledger.service",),
        directories=({"path": "/etc/heliograph/ledger"}, {"path": state, "mode": "700", "owner": NODE_USER}),
        extra={"purge": [state]},
    )


def carrier(region: Region, address: str) -> Bundle:
    """The built-in carrier simulator."""
    quadlet = _render(
        "quadlets/heliograph-carrier.container.j2",
        image=region.control_plane.image.reference,
        uid=NODE_UID,
        address=address,
        port=CARRIER_PORT,
    )
    return Bundle(
        "carrier",
        files=(File(f"{QUADLETS}/heliograph-carrier.container", quadlet),),
        units=("heliograph-carrier.service",),
        directories=({"path": "/var/lib/heliograph/carrier", "mode": "700", "owner": NODE_USER},),
        extra={"purge": ["/var/lib/heliograph/carrier"]},
    )


def everything(region: Region, topology: Topology) -> dict[tuple[str, str], Bundle]:
    """(Host, resource) → bundle, for all that has files of its own: what the linter looks at before anything is changed."""
    found = {(one.name, "host"): host(region, topology, one.name) for one in region.hosts}
    for replica_set in topology.sets:
        found |= {(m.host, f"mongod-{m.set}"): member(region, replica_set, m) for m in replica_set.members}
    found |= {(r.host, "router"): router(region, topology, r) for r in topology.routers}
    found |= {(n.host, "secret-key"): node_base() for n in topology.nodes}
    found |= {(n.host, f"node-{n.number}"): node(region, topology, n) for n in topology.nodes}
    found |= {(one.host, "ledger"): ledger(region, topology, one) for one in topology.ledgers}
    found |= {(h.name, "carrier"): carrier(region, h.address) for h in region.hosts if h.name == topology.carrier}
    return found


# -- what the control plane's image does once ----------------------------------------------------------------------------


def cluster_run(verb: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """`heliograph cluster <verb>` as the cluster's member: the specification of `hostctl run`."""
    return {
        "argv": [
            "cluster",
            verb,
            "--ca",
            "/etc/heliograph/tls/ca.pem",
            "--certificate",
            "/etc/heliograph/tls/member.pem",
        ],
        "user": DATA_USER,
        "volumes": ["/etc/heliograph/tls:/etc/heliograph/tls:ro"],
        "stdin": json.dumps(spec),
    }


def set_spec(region: Region, replica_set: ReplicaSet) -> dict[str, Any]:
    """For `heliograph cluster replica-set`."""
    members = [
        {"id": m.id, "host": m.endpoint, "priority": m.priority, "votes": 1, "hidden": False, "tags": {"host": m.host}}
        for m in replica_set.members
    ]
    election = region.mongodb.election_seconds
    return {"set": replica_set.name, "role": replica_set.role, "members": members, "election_seconds": election}


def organization(region: str) -> str:
    """O= of all certificates of a region."""
    return f"heliograph-{region}"


CLIENT_UNIT = "heliograph-client"


CLIENTS = ("ledger", "node")
"""Common names of the certificates with which the control plane's processes come to MongoDB; each is a user of its own."""
BY_ID = ("ledger_bundles", "ledger_tiles", "search_data")
"""Collections that are spread by their `_id`. The ledger's others (logs, runs, cosignatures, lease, findings, repairs, witnessed, conflicts, erasures) stay on the
database's primary shard: they are small beside these, and some are read whole."""


def shard_spec(topology: Topology) -> dict[str, Any]:
    """For `heliograph cluster shards`: shards, the sharded collections and who may do what."""
    users = {name: f"CN={name},OU={CLIENT_UNIT},O={organization(topology.region)}" for name in CLIENTS}
    roles = {name: [{"role": "readWrite", "db": "heliograph"}] for name in CLIENTS}
    roles["node"].append({"role": "clusterMonitor", "db": "admin"})  # GET /v1/topology: it reads, and changes nothing
    return {
        "routers": [router.endpoint for router in topology.routers],
        "shards": [{"name": s.name, "members": [m.endpoint for m in s.members]} for s in topology.shards],
        "database": "heliograph",
        "collections": {
            "events": {"key": {"mid": "hashed"}},
            "suppressions": {"key": {"r": "hashed"}},
            "preferences": {"key": {"r": "hashed"}},
            **{name: {"key": {"_id": "hashed"}} for name in BY_ID},
        },
        "users": [{"user": user, "roles": roles[name]} for name, user in users.items()],
    }


def client_run(verb: str, document: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`heliograph <verb>` as a client of the region: the specification of `hostctl run`."""
    return {
        "argv": [verb],
        "user": NODE_USER,
        "volumes": ["/etc/heliograph/tls:/etc/heliograph/tls:ro", "/etc/heliograph/node:/etc/heliograph/node:ro"],
        "environment": dict(environment or {}),
        "stdin": json.dumps(document),
    }


def seed_run(
    region: Region, topology: Topology, host_name: str, admin_key: str, revoked: Sequence[str] = ()
) -> dict[str, Any]:
    """The catalog that a region begins with: the first key, and the built-in carrier for the numbers under +999. `revoked`: keys that end."""
    connectors: list[dict[str, Any]] = []
    routes: list[dict[str, Any]] = []
    for one in region.hosts:
        if one.name == topology.carrier:
            account = {
                "system_id": "heliograph",
                "password": "secret",
            }  # the simulator's; only the region's hosts reach it
            connectors.append({"name": "builtin", "host": one.address, "port": CARRIER_PORT, **account, "window": 100})
            routes.append({"name": "builtin", "connector": "builtin", "prefixes": ["999"], "priority": 1000})
    environment = {
        "HELIOGRAPH_MONGODB_URI": mongodb_uri(topology, host_name),
        "HELIOGRAPH_SECRET_KEY_FILE": "/etc/heliograph/node/secret-key",
        "HELIOGRAPH_DATACENTER": region.name,
    }
    document = {"admin_key": admin_key, "connectors": connectors, "routes": routes}
    return client_run("seed", document | ({"revoked_keys": list(revoked)} if revoked else {}), environment)


def verify_run(region: Region, topology: Topology, admin_key: str) -> dict[str, Any]:
    """One message through each node."""
    document = {
        "api_key": admin_key,
        "urls": [node.url for node in topology.nodes],
        "to": region.verify.to,
        "wait_seconds": region.verify.wait_seconds,
        "ca": "/etc/heliograph/tls/ca.pem",
    }
    return client_run("verify", document)
