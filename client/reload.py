"""Follows the configuration file: a changed one is checked and taken over whole, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from client.config import GatewayConfig
from utils.background import in_background
from utils.config import ConfigError, load_config

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25

Apply = Callable[[GatewayConfig], None]
FileState = tuple[int, ...]


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
        self._reloading = asyncio.Lock()
        self._before: FileState | None = None
        self._taken: FileState | None = None

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

    @contextlib.asynccontextmanager
    async def following(self, apply: Apply) -> AsyncIterator[None]:
        """Call `apply` with each new configuration, while the block lasts."""
        async with contextlib.AsyncExitStack() as stack:
            name = f"the look at {self.path}"
            await stack.enter_async_context(in_background(name, lambda: self._on_change(apply)))
            if self._interval:
                await stack.enter_async_context(in_background(name, lambda: self._on_time(apply)))
            yield

    async def _on_change(self, apply: Apply) -> None:
        # looked at rather than watched: this sees through links, and through directories made anew
        state = await asyncio.to_thread(self._state)  # a network file system may let it wait
        if state == self._before != self._taken:  # still since the last look: whoever writes it is done
            await self._reload(apply)
            self._taken = state
        self._before = state
        await asyncio.sleep(_LOOK_SECONDS)

    async def _on_time(self, apply: Apply) -> None:
        await asyncio.sleep(self._interval)
        await self._reload(apply)

    async def _reload(self, apply: Apply) -> None:
        """Take the file over where it has changed; it is read and checked beside the event loop."""
        async with self._reloading:
            await self._take_over(apply)

    async def _take_over(self, apply: Apply) -> None:
        try:
            config = await asyncio.to_thread(self._changed)
            if config is None:
                return
            apply(config)
        except ConfigError as error:
            self.error = str(error)
            logger.error("the configuration was not taken over: %s", error)
            return
        except Exception as error:  # a fault of ours must not end the following
            self.error = f"{type(error).__name__}: {error}"
            logger.exception("the configuration was not taken over")
            return
        logger.info("configuration taken over from %s", self.path)

    def _changed(self) -> GatewayConfig | None:
        """The configuration, unless the file is as it was.

        Raises:
            ConfigError: it cannot be used.
        """
        return None if self._read() == self._content else self.load()

    def _state(self) -> FileState:
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
