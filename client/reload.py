"""Follows the configuration file: a changed one is checked and taken over whole, or not at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from client.config import GatewayConfig
from utils.config import ConfigError, load_config

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25

Apply = Callable[[GatewayConfig], None]


class ConfigFile:
    """The file at `path`.

    Args:
        interval: seconds after which it is read again even where its size and times are the same (as
            a network file system may still give the old ones); 0 for never.
    """

    def __init__(self, path: Path, *, interval: float = 0.0) -> None:
        self.path = path.absolute()
        self.loads = 0
        """How often it was taken over."""
        self.error: str | None = None
        """Why the file as it stands is not in use."""
        self._interval = interval
        self._content: bytes | None = None

    def load(self) -> GatewayConfig:
        """The configuration.

        Raises:
            ConfigError: it cannot be used.
        """
        self._content = self._read()
        config = load_config(self.path, GatewayConfig)
        self.loads += 1
        self.error = None
        return config

    async def follow(self, apply: Apply) -> None:
        """Call `apply` with each new configuration, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._on_change(apply))
            if self._interval:
                tasks.create_task(self._on_time(apply, self._interval))

    async def _on_change(self, apply: Apply) -> None:
        # looked at rather than watched: this sees through links, and through directories made anew
        taken = before = None
        while True:
            state = await asyncio.to_thread(self._state)  # a network file system may let it wait
            if state == before != taken:  # still since the last look: whoever writes it is done
                self._reload(apply)
                taken = state
            before = state
            await asyncio.sleep(_LOOK_SECONDS)

    async def _on_time(self, apply: Apply, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            self._reload(apply)

    def _reload(self, apply: Apply) -> None:
        if self._read() == self._content:
            return
        try:
            apply(self.load())
        except ConfigError as error:
            self.error = str(error)
            logger.error("the configuration was not taken over: %s", error)
            return
        except Exception as error:  # a fault of ours must not end the following
            self.error = f"{type(error).__name__}: {error}"
            logger.exception("the configuration was not taken over")
            return
        logger.info("configuration taken over from %s", self.path)

    def _state(self) -> tuple[int, ...]:
        """What changes with the file; empty where there is none."""
        try:
            stat = self.path.stat()
        except OSError:
            return ()
        return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except OSError:
            return None
