"""`make lab-up`: two datacenters on this machine, to look at and to break; `make lab-down` ends them.

python -m tests.lab up [fra]     stays in the background; prints how to reach everything
python -m tests.lab down
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.lab import images
from tests.lab.doctor import can_run
from tests.lab.hosts import Lab, down
from tests.lab.project import ROOT
from tests.lab.tools import cache_dir, prepare
from tests.lab.world import DATA_DISK_MB, World

NAME = "heliograph-lab"
SHARDS = {"fra": ["a", "b"], "iad": ["a"]}


def _state() -> Path:
    return cache_dir() / "lab-up"


async def _run(stacks: list[str]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tools = await asyncio.to_thread(prepare, print)
    made = await asyncio.to_thread(images.build)
    folder = _state() / f"operator-{os.getpid()}"
    async with Lab(tools, name=NAME, data_disk_mb=DATA_DISK_MB) as lab:
        await lab.boot([f"{stack}-{n}" for stack in stacks for n in (1, 2, 3)])
        print("hosts are up", flush=True)
        world = World(lab, made, folder)
        for stack in stacks:
            hosts = [host for host in lab.hosts.values() if host.datacenter == stack]
            await world.stack(stack, hosts, SHARDS[stack], beside="" if stack == stacks[0] else stacks[0])
        if len(stacks) == 2:
            await world.peers(*stacks)
        for stack in stacks:
            begun = time.monotonic()
            done = await world.project.up(stack)
            print(done.text[-6000:], flush=True)
            if done.code:
                break
            print(f"{stack} stands after {time.monotonic() - begun:.0f} s", flush=True)
        environment = folder / "environment"
        lines = [f"export {name}='{value}'" for name, value in world.project.environment.items()]
        environment.write_text("\n".join([*lines, f"cd {world.project.project}"]) + "\n")
        (_state() / "ready").write_text(
            json.dumps(
                {
                    "netns": lab.netns,
                    "project": str(world.project.project),
                    "first": next(iter(lab.hosts.values())).address,
                    "environment": str(environment),
                }
            )
        )
        await stop.wait()


def _up(stacks: list[str]) -> int:
    if reasons := can_run():
        print("The lab cannot run on this machine:\n" + "\n".join(reasons))
        return 1
    _down()
    _state().mkdir(parents=True, exist_ok=True)
    with (_state() / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.lab", "run", *stacks],
            stdout=log,
            stderr=log,
            cwd=ROOT,
            start_new_session=True,
        )
    (_state() / "pid").write_text(str(process.pid))
    seen = 0
    while process.poll() is None and not (_state() / "ready").exists():
        time.sleep(0.5)
        text = (_state() / "log").read_text()
        sys.stdout.write(text[seen:])
        sys.stdout.flush()
        seen = len(text)
    if process.poll() is not None:
        print((_state() / "log").read_text()[seen:])
        return 1
    ready = json.loads((_state() / "ready").read_text())
    print(f"""
The lab runs. As its operator:

  nsenter --net=/run/netns/{ready["netns"]} bash --rcfile {ready["environment"]}
    pulumi stack ls; pulumi up --stack {stacks[0]}; python -m infra.verify {stacks[0]}
    pulumi stack output --stack {stacks[0]} urls; ssh -i ../ssh_key operator@{ready["first"]}

make lab-down ends it.""")
    return 0


def _down() -> int:
    pid = _state() / "pid"
    if pid.exists():
        number = int(pid.read_text())
        command = Path(f"/proc/{number}/cmdline")
        if command.exists() and b"tests.lab" in command.read_bytes():
            os.kill(number, signal.SIGTERM)
            while command.exists() and command.read_bytes():
                time.sleep(0.2)
        pid.unlink()
    (_state() / "ready").unlink(missing_ok=True)
    for name in down():
        print(f"removed {name}")
    subprocess.run(["rm", "-rf", _state()], check=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["up", "down", "run"])
    parser.add_argument("stacks", nargs="*", default=list(SHARDS))
    arguments = parser.parse_args()
    if arguments.what == "run":
        asyncio.run(_run(arguments.stacks))
        return 0
    return _up(arguments.stacks) if arguments.what == "up" else _down()


if __name__ == "__main__":
    sys.exit(main())
