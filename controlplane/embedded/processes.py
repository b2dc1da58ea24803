"""Child processes: started in order, watched, started again when they crash, stopped in reverse order."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from controlplane.errors import ConfigError

__all__ = ["Child"]

_STOP_SECONDS = 30.0
_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)


class Child:
    """One `python -m controlplane …` with a log file of its own."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self._arguments = arguments
        self._environment = environment
        self.log = log
        self.process: asyncio.subprocess.Process | None = None
        self.restarts = 0

    async def start(self) -> None:
        """Start it; its output goes to the log."""
        with self.log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "controlplane",
                *self._arguments,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the supervisor, which stops the children in order
            )

    async def ready(self, check: Callable[[], bool], seconds: float) -> None:
        """Wait for `check`. ConfigError with the end of the log when the child ends, or the time."""
        for _ in range(int(seconds / 0.1)):
            if check():
                return
            if self.process is not None and self.process.returncode is not None:
                raise ConfigError(f"The {self.name} ended with code {self.process.returncode}:\n{self._tail()}")
            await asyncio.sleep(0.1)
        raise ConfigError(f"The {self.name} was not ready within {seconds:.0f} s:\n{self._tail()}")

    def _tail(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-5:]) + f"\n(all of it: {self.log})"

    async def watch(self, say: Callable[[str], None]) -> None:
        """Start it again whenever it ends, until cancelled."""
        while self.process is not None:
            code = await self.process.wait()
            pause = _PAUSES[min(self.restarts, len(_PAUSES) - 1)]
            self.restarts += 1
            say(f"The {self.name} ended with code {code}; it starts again in {pause} s. Log: {self.log}")
            await asyncio.sleep(pause)
            await self.start()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help in time."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
