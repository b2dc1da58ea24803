"""`heliograph seed`, the first thing that `up` does with a cluster that has just come to be: it waits for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.embedded.mongod import Mongod
from tests.conftest import SECRET
from tests.simulators.network import free_port

DOCUMENT = {
    "admin_key": "hg_live_a_key_that_nobody_else_has_0123456789ab"[:46],
    "connectors": [{"name": "builtin", "host": "10.0.0.1", "port": 2775, "system_id": "x", "password": "y"}],
    "routes": [{"name": "builtin", "connector": "builtin", "prefixes": ["999"]}],
}


@pytest.fixture
def mongod(tmp_path: Path) -> Mongod:
    """Not started yet."""
    return Mongod(tmp_path / "db", free_port())


def test_a_database_that_comes_later(mongod):
    """What it waited for is told; a second run finds all of it."""
    command = [str(Path(sys.executable).parent / "heliograph"), "seed"]
    environment = {"HELIOGRAPH_MONGODB_URI": mongod.uri, "HELIOGRAPH_SECRET_KEY": SECRET, "PATH": "/usr/bin:/bin"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as first:
        assert first.stdin
        assert first.stderr
        first.stdin.write(json.dumps(DOCUMENT))
        first.stdin.close()
        assert first.stderr.readline().startswith("tried again: MongoDB: ")
        mongod.start()
        try:
            assert first.stdout
            made = [json.loads(line)["what"] for line in first.stdout]
            assert first.wait(60) == 0
            assert made == ["tenant operator", "key first", "connector builtin", "route builtin"]
            again = subprocess.run(
                command, input=json.dumps(DOCUMENT), capture_output=True, text=True, env=environment, check=True
            )
            assert again.stdout == ""
        finally:
            first.kill()
            mongod.stop()
