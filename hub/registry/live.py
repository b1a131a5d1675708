"""The registry as the folders have it, while the hub runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from hub.errors import ConfigurationError
from hub.registry.models import Registry
from hub.registry.opening import Aliases, open_registry
from hub.registry.reading import REMOTE, absence

log = logging.getLogger(__name__)


class LiveRegistry:
    """The registry as the folders have it: read anew when a manifest has come, gone or changed."""

    INTERVAL = 1.0
    """Seconds between two looks."""

    def __init__(
        self,
        folders: Callable[[], Sequence[Path]],
        owner_aliases: Aliases,
        weights_dir: Path | None = None,
        remote_models: Sequence[str] = (),
    ) -> None:
        """folders: asked at each look, for the owner's may be made later. Raises ConfigurationError; later, what is
        wrong is logged, and what was read before stays."""
        self._folders, self._aliases, self._weights_dir = folders, owner_aliases, weights_dir
        self._remote_models = remote_models
        self._looking = threading.Lock()
        self.current = self._open()
        """For one request: the next one may get another."""
        self._seen = self._look()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Looks again and again, as long as the context, on a thread: a slow disk holds nobody up."""
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.INTERVAL)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Looks now. Never raises."""
        with self._looking:
            try:
                self._refresh()
            except Exception:
                log.exception("looking at the models failed; trying again")

    def _refresh(self) -> None:
        seen = self._look()
        if seen == self._seen:
            return
        try:
            self.current = self._open()
        except (ConfigurationError, OSError) as error:
            log.error("the models have changed and are not read anew: %s", error)
        else:
            log.info("the models have changed: %s", ", ".join(listed.id for listed in self.current))
            seen = self._look()
        self._seen = seen

    def _open(self) -> Registry:
        return open_registry(self._folders(), self._aliases, self._weights_dir, self._remote_models)

    def _look(self) -> list[str]:
        """Of each manifest name, size and time; and whether its weights are there, which decides what it draws."""
        lines = []
        for folder in (each for own in self._folders() for each in (own, own / REMOTE)):
            with contextlib.suppress(OSError):
                lines += sorted(
                    f"{entry.path}\t{status.st_size}\t{status.st_mtime_ns}\t{status.st_ino}"
                    for entry in os.scandir(folder)
                    if entry.name.endswith(".toml") and (status := entry.stat())
                )
        return lines + [f"{manifest.id}\t{absence(manifest)}" for manifest in self.current.local]
