"""Work that ends when its client has gone: `unless_client_leaves` alone, with clients and work that do as they like."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hub.api.wire import ClientGone, unless_client_leaves


def client(leaves_after: float) -> Callable[[], Awaitable[Any]]:
    """What an ASGI server says of one."""

    async def receive() -> dict[str, str]:
        await asyncio.sleep(leaves_after)
        return {"type": "http.disconnect"}

    return receive


async def long(seconds: float = 10) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def stubborn() -> str:
    try:
        return await long()
    except asyncio.CancelledError:
        return "done all the same"


async def clumsy() -> str:
    try:
        return await long()
    finally:
        raise RuntimeError("while it was cleaning up")


async def impatient() -> str:
    async with asyncio.timeout(0.02):
        return await long()


def outcome(test: Callable[[], Awaitable[Any]]) -> Any:
    """What comes of it, and that the task is none that is being cancelled afterwards."""

    async def main() -> Any:
        try:
            return await test()
        except Exception as error:
            return type(error)
        finally:
            await asyncio.sleep(0.05)  # where it would be cancelled too late
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

    return asyncio.run(main())


def test_work_that_ends_first_is_answered() -> None:
    assert outcome(lambda: unless_client_leaves(client(10), long(0.01))) == "done"
    assert outcome(lambda: unless_client_leaves(client(10), impatient())) is TimeoutError


@pytest.mark.parametrize("work", [long, stubborn, clumsy])
def test_a_client_that_leaves_ends_it_whatever_work_makes_of_that(work: Callable[[], Any]) -> None:
    async def twice() -> Any:
        with pytest.raises(ClientGone):
            await unless_client_leaves(client(0.01), work())
        return await unless_client_leaves(client(0.01), work())

    assert outcome(twice) is ClientGone


def test_a_client_that_leaves_as_work_ends_cancels_nothing_afterwards() -> None:
    for _ in range(50):
        assert outcome(lambda: unless_client_leaves(client(0.002), long(0.002))) in ("done", ClientGone)


def test_whoever_cancels_the_task_itself_is_obeyed() -> None:
    async def main() -> bool:
        task = asyncio.create_task(unless_client_leaves(client(0.02), long()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return task.cancelled()

    assert asyncio.run(main())
