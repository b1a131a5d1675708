"""What a request may cost, as far as is known at each moment: also when somebody gives it up in its middle."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Literal

from hub.errors import HubError

GRACE = 5.0
"""Seconds for which a request that has failed waits to hear whether its other calls cost anything: what is refused is
refused soon."""


class Works:
    """The calls of one request."""

    def __init__(self) -> None:
        self.error: HubError | None = None
        """That of the first call that has failed: after it nothing more is sent, nor sent again."""
        self._all: list[Work] = []
        self._news = asyncio.Event()

    def one(self) -> Work:
        """A further call."""
        self._all.append(Work(self, self._news))
        return self._all[-1]

    @property
    def may_be_billed(self) -> bool:
        """Whether the provider may charge for any of them."""
        return any(work.may_be_billed for work in self._all)

    async def known(self) -> None:
        """Returns when it is certain that something may be billed, or that nothing is, or else after GRACE."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                while {work.state for work in self._all} in ({"sent"}, {"sent", "idle"}):
                    self._news.clear()
                    await self._news.wait()


class Work:
    """One call. `state`: `sent` while it is on its way, or worked on, and nothing was heard of it; `spent` when the
    provider has taken it, or has failed in a way after which it may charge; `idle` before, and when it was refused."""

    def __init__(self, works: Works, news: asyncio.Event) -> None:
        self.works = works
        self.state: Literal["idle", "sent", "spent"] = "idle"
        self._news = news

    @property
    def may_be_billed(self) -> bool:
        """Whether the provider may charge for it."""
        return self.state != "idle"

    def begin(self) -> None:
        """It is on its way."""
        self.state = "sent"

    def heard(self, *, spent: bool) -> None:
        """What an answer, or its absence, tells."""
        self.state = "spent" if spent else "idle"
        self._news.set()
