"""The texts in `golden/`, one host of the sample region as it was last read by a human. `python -m tests.unit.infra.golden` rewrites them."""

from __future__ import annotations

from pathlib import Path

from tests.unit.infra.sample import files, sample_peer, sample_region

__all__ = ["FOLDER", "rendered"]

FOLDER = Path(__file__).with_name("golden")
HOST = "fra-1"
WANTED = (
    "etc/containers/systemd/heliograph-carrier.container",
    "etc/containers/systemd/heliograph-ledger.container",
    "etc/containers/systemd/heliograph-mongod-fra-a.container",
    "etc/containers/systemd/heliograph-node-1.container",
    "etc/containers/systemd/heliograph-router.container",
    "etc/heliograph/firewall.nft",
    "etc/heliograph/ledger/authorities.pem",
    "etc/heliograph/ledger/ledger.env",
    "etc/heliograph/mongod/fra-a.conf",
    "etc/heliograph/mongod/fra-config.conf",
    "etc/heliograph/mongod/router.conf",
    "etc/heliograph/node/fra-1-1.env",
    "etc/systemd/system/heliograph-firewall.service",
    "etc/systemd/system/heliograph-hugepages.service",
)


def rendered() -> dict[str, str]:
    """Name below `golden/` → text. Version 8.0, a closed API and a peer, so that each branch of the templates shows."""
    region = sample_region(
        mongodb={"version": "8.0"},
        control_plane={"allow": ["10.0.0.0/8"]},
        ledger={"domain": "heliograph.example", "peers": [sample_peer()]},
    )
    texts = files(region)[HOST]
    return {name: texts[f"/{name}"] for name in WANTED}


def main() -> None:
    texts = rendered()
    for old in [path for path in FOLDER.rglob("*") if path.is_file() and str(path.relative_to(FOLDER)) not in texts]:
        old.unlink()
        print(f"deleted {old.relative_to(FOLDER)}")
    for name, text in texts.items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
