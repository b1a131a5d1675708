"""Requests at routes, in a hub whose providers are on loopback and whose engine is a stand-in."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hub.breaker import FAILURES
from hub.errors import (
    BudgetExceeded,
    EngineUnavailable,
    GenerationFailed,
    HubError,
    InvalidRequest,
    ModelLoading,
    OutOfMemory,
    ProviderFailed,
    ProviderTimeout,
    ProviderUnavailable,
    RemoteNotAllowed,
)
from hub.hub import Hub
from hub.jobs import Ask
from hub.settings import Settings
from hub.types import Accepted, Event, ImageRequest, ImageResult, Progress
from tests.providers.protocols.openai import OpenAIProtocol
from tests.providers.upstream import KEY, Asked, Reply, Upstream, answers, dropped, raw, serving, slow
from tests.routes import StandIn, hub_without_engine, write_credentials, write_local, write_remote, write_route

STAR = ImageRequest(prompt="a star")


class House:
    """A folder of models, two providers, and hubs that use them."""

    def __init__(self, folder: Path, near: Upstream, far: Upstream) -> None:
        self.models, self.folder, self.near, self.far = folder / "models", folder, near, far
        write_local(self.models)
        write_remote(self.models, "near", near.url, price=0.02)
        write_remote(self.models, "far", far.url, price=0.04)

    def settings(self, **more: Any) -> Settings:
        given = {
            "remote_keys": ["*"],
            "credentials": write_credentials(self.folder, "near", "far", "beside"),
            "default_model": "small",
            **more,
        }
        return Settings(cache_dir=self.folder / "cache", models_dir=self.models, **given)

    def run(self, test: Callable[[Hub, StandIn], Coroutine[Any, Any, None]], **settings: Any) -> None:
        async def main() -> None:
            async with asyncio.timeout(60), hub_without_engine(self.settings(**settings)) as (hub, drawing):
                await test(hub, drawing)

        asyncio.run(main())


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with serving(OpenAIProtocol()) as near, serving(OpenAIProtocol()) as far:
        yield House(tmp_path, near, far)
        assert near.failures == far.failures == []


async def fails(work: Awaitable[object]) -> HubError:
    with pytest.raises(HubError) as found:
        await work
    return found.value


async def spent(hub: Hub, owner: str = "") -> float:
    return round(await hub.ledger.spent(owner), 6)


def test_the_first_target_serves_and_says_so(house: House) -> None:
    write_route(house.models, "far", "small")

    async def test(hub: Hub, drawing: StandIn) -> None:
        made = await hub.generate("image", STAR)
        assert (made.target, made.warnings, len(made.images)) == ("far", (), 1)
        assert made.usage is not None
        assert not drawing.asked and len(house.far.work) == 1
        assert await spent(hub) == 0.04

    house.run(test)


def test_a_plain_model_says_its_own_id_also_behind_an_alias(house: House) -> None:
    async def test(hub: Hub, drawing: StandIn) -> None:
        assert (await hub.generate("small", STAR)).target == "small"
        assert (await hub.generate("dall-e-3", STAR)).target == "small"
        made = await hub.generate("near", STAR)
        assert (made.target, made.warnings) == ("near", ())

    house.run(test, aliases={"dall-e-3": "small"})


@pytest.mark.parametrize(
    "error",
    [
        EngineUnavailable("died", retry_after=1),
        OutOfMemory("large"),
        ModelLoading("soon", retry_after=9),
        GenerationFailed("no"),
    ],
    ids=lambda error: error.code,
)
def test_what_fails_here_is_served_there_with_the_reason(house: House, error: HubError) -> None:
    write_route(house.models, "small", "far", order="local-first")

    async def test(hub: Hub, drawing: StandIn) -> None:
        drawing.error = error
        made = await hub.generate("image", STAR)
        assert made.target == "far"
        assert made.warnings == (f"target: served by far; small was left out: it failed ({error.code})",)

    house.run(test)


def test_weights_that_are_not_there_are_not_waited_for(house: House) -> None:
    (house.models / "weights" / "model_index.json").unlink()
    write_route(house.models, "small", "far", order="local-first")

    async def test(hub: Hub, drawing: StandIn) -> None:
        made = await hub.generate("image", STAR)
        assert made.warnings == ("target: served by far; small was left out: it has no weights on this machine",)
        assert not drawing.asked

    house.run(test)


@pytest.mark.parametrize(
    "fault", [answers(401), answers(404), answers(307, Location="http://192.0.2.1/")], ids=["401", "404", "307"]
)
def test_a_provider_that_made_nothing_for_certain_is_followed_by_another(house: House, fault: Any) -> None:
    write_route(house.models, "near", "far")
    house.near.faults.append(fault)

    async def test(hub: Hub, drawing: StandIn) -> None:
        made = await hub.generate("image", STAR)
        assert made.target == "far"
        assert len(house.near.work) == len(house.far.work) == 1
        assert await spent(hub) == 0.04, "the first one has cost nothing"

    house.run(test)


def test_a_provider_that_is_not_there_is_followed_by_another(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        write_remote(house.models, "near", f"http://127.0.0.1:{closed.getsockname()[1]}")
    write_route(house.models, "near", "far")

    async def test(hub: Hub, drawing: StandIn) -> None:
        made = await hub.generate("image", STAR)
        assert made.warnings[-1] == "target: served by far; near was left out: it failed (provider_unreachable)"

    house.run(test)


@pytest.mark.parametrize("fault", [answers(500), dropped()], ids=["500", "dropped"])
def test_nothing_is_paid_twice_after_an_answer_that_may_have_been_billed(house: House, fault: Any) -> None:
    write_route(house.models, "near", "far")
    house.near.faults.append(fault)

    async def test(hub: Hub, drawing: StandIn) -> None:
        error = await fails(hub.generate("image", STAR))
        assert isinstance(error, ProviderFailed) and error.may_have_billed
        assert error.headers["x-should-retry"] == "false"
        assert "near failed (provider_failed); far would cost money" in error.message
        assert (len(house.near.work), len(house.far.work)) == (1, 0)
        assert await spent(hub) == 0.02, "it counts as spent"

    house.run(test)


def test_what_costs_nothing_may_follow(house: House) -> None:
    write_route(house.models, "near", "far", "small")
    house.near.faults.append(answers(500))

    async def test(hub: Hub, drawing: StandIn) -> None:
        made = await hub.generate("image", STAR)
        assert made.target == "small"
        assert "far was left out: it would cost money" in made.warnings[0]
        assert not house.far.work

    house.run(test)


def test_the_owner_may_have_it_paid_twice(house: House) -> None:
    write_route(house.models, "near", "far", retry_billed=True)
    house.near.faults.append(answers(500))

    async def test(hub: Hub, drawing: StandIn) -> None:
        assert (await hub.generate("image", STAR)).target == "far"
        assert await spent(hub) == 0.06

    house.run(test)


def test_what_the_provider_refuses_is_the_requests_own_fault(house: House) -> None:
    write_route(house.models, "near", "far")
    house.near.faults.append(answers(400))

    async def test(hub: Hub, drawing: StandIn) -> None:
        assert (await fails(hub.generate("image", STAR))).code == "provider_refused"
        assert not house.far.work
        assert await spent(hub) == 0

    house.run(test)


def test_a_refusal_counts_where_other_calls_of_the_request_were_served(house: House) -> None:
    far = house.models / "far.toml"
    far.write_text(far.read_text().replace("max_n = 10", "max_n = 1"))

    def refused_late(handler: Any, asked: Asked) -> bool:
        time.sleep(0.3)  # the other one is served meanwhile
        return answers(400)(handler, asked)

    house.far.faults.append(refused_late)

    async def test(hub: Hub, drawing: StandIn) -> None:
        error = await fails(hub.generate("far", msgspec.structs.replace(STAR, n=2)))
        assert error.status == 400 and error.may_have_billed
        assert await spent(hub) == 0.08, "the estimate, since one of two was made"

    house.run(test)


def test_a_strict_request_goes_to_one_that_honours_it(house: House) -> None:
    write_route(house.models, "near", "small")

    async def test(hub: Hub, drawing: StandIn) -> None:
        strict = msgspec.structs.replace(STAR, strict=True, scheduler="DDIMScheduler")
        made = await hub.generate("image", strict)
        assert made.target == "small" and not house.near.work
        drawing.error = InvalidRequest("scheduler: no", param="scheduler", code="unsupported_value")
        loose = await fails(hub.generate("small", msgspec.structs.replace(strict, strict=False)))
        assert loose.code == "unsupported_value"

    house.run(test)


def test_a_mistake_is_not_paid_for_where_it_would_be_ignored(house: House) -> None:
    write_route(house.models, "small", "far")

    async def test(hub: Hub, drawing: StandIn) -> None:
        drawing.error = InvalidRequest("scheduler: no", param="scheduler", code="unsupported_value")
        assert await fails(hub.generate("image", STAR)) is drawing.error
        assert not house.far.work

    house.run(test)


def test_all_that_failed_is_named_and_the_last_of_them_decides(house: House) -> None:
    write_route(house.models, "small", "near")
    house.near.faults.append(answers(404))

    async def test(hub: Hub, drawing: StandIn) -> None:
        drawing.error = OutOfMemory("It needs 9 GB.")
        error = await fails(hub.generate("image", STAR))
        assert error.code == "provider_failed"
        told = "No target of 'image' can serve this: small failed (out_of_memory); near failed (provider_failed)."
        assert error.message.endswith(told)

    house.run(test)


def test_a_server_whose_keys_are_named_and_not_there_is_left_out(house: House) -> None:
    (house.models / "lab.toml").write_text(
        'id = "lab"\nname = "lab"\ndescription = ""\nprovider = "openai_compatible"\ntasks = ["text-to-image"]\n'
        f'[remote]\nmodel = "x"\nbase_url = "{house.near.url}"\ncredentials = "nobody"\n'
    )
    write_route(house.models, "lab", "far")

    async def test(hub: Hub, drawing: StandIn) -> None:
        made = await hub.generate("image", STAR)
        assert made.target == "far" and "lab was left out: it needs a key" in made.warnings[0]
        error = await fails(hub.generate("lab", STAR))
        assert (error.status, error.code) == (503, "provider_unavailable")
        assert house.near.asked == []

    house.run(test)


def test_what_only_the_owner_can_mend_is_not_tried_again_by_clients(house: House) -> None:
    house.near.faults.append(answers(404))
    write_remote(house.models, "keyless", house.near.url)

    async def test(hub: Hub, drawing: StandIn) -> None:
        for name in ("near", "keyless"):
            assert (await fails(hub.generate(name, STAR))).headers == {"x-should-retry": "false"}

    house.run(test)


def test_credit_that_is_gone_is_told_as_that_as_long_as_the_key_is_left_alone(house: House) -> None:
    write_route(house.models, "near")
    house.near.faults.append(answers(402))

    async def test(hub: Hub, drawing: StandIn) -> None:
        for name in ("near", "near", "image"):
            error = await fails(hub.generate(name, STAR))
            assert error.code == "provider_key_refused" and "no credit" in error.message.lower()
        assert len(house.near.asked) == 1

    house.run(test)


@pytest.mark.parametrize("fault", [answers(500), answers(401), answers(400)], ids=["500", "401", "400"])
def test_an_error_and_the_log_say_which_model_it_was(
    house: House, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    house.near.faults.append(fault)

    async def test(hub: Hub, drawing: StandIn) -> None:
        with caplog.at_level(logging.INFO):
            error = await fails(hub.generate("near", STAR))
        assert error.message.startswith("near: ")
        assert f"near failed: {error.status} {error.code}" in caplog.text
        assert "near answered " in caplog.text

    house.run(test)


# ── who may leave ──


def test_a_key_that_may_not_leave_is_served_here_or_not_at_all(house: House) -> None:
    write_route(house.models, "small", "far", order="local-first")

    async def test(hub: Hub, drawing: StandIn) -> None:
        bob = msgspec.structs.replace(STAR, owner="bob")
        alice = msgspec.structs.replace(STAR, owner="alice")
        drawing.error = OutOfMemory("It needs 9 GB.")
        assert (await fails(hub.generate("image", bob))).code == "out_of_memory"
        assert isinstance(await fails(hub.generate("far", bob)), RemoteNotAllowed)
        assert not house.far.asked
        assert (await hub.generate("image", alice)).target == "far"

    house.run(test, remote_keys=["alice"], api_keys={"alice": "sk-a", "bob": "sk-b"})


def test_without_the_setting_nothing_leaves(house: House) -> None:
    async def test(hub: Hub, drawing: StandIn) -> None:
        error = await fails(hub.generate("far", STAR))
        assert (error.status, error.code) == (403, "remote_not_allowed")
        assert 'remote_keys = ["*"]' in error.message
        assert not house.far.asked

    house.run(test, remote_keys=[])


def test_the_policy_is_looked_at_again_before_the_next_target(house: House) -> None:
    write_route(house.models, "small", "far")

    async def test(hub: Hub, drawing: StandIn) -> None:
        drawing.error = OutOfMemory("It needs 9 GB.")
        drawing.before = hub.settings.remote_keys.clear
        error = await fails(hub.generate("image", STAR))
        assert "far is on another machine" in error.message
        assert not house.far.asked

    house.run(test)


def test_so_is_the_manifest(house: House) -> None:
    write_route(house.models, "small", "far")

    async def test(hub: Hub, drawing: StandIn) -> None:
        def stay() -> None:
            write_route(house.models, "small", "far", remote=False)
            hub._registry.refresh()

        drawing.error, drawing.before = OutOfMemory("It needs 9 GB."), stay
        assert "'image' never leaves this one" in (await fails(hub.generate("image", STAR))).message
        assert not house.far.asked

    house.run(test)


def test_a_server_on_this_machine_cannot_name_another_one_to_who_may_not_leave(house: House, tmp_path: Path) -> None:
    class Linking(OpenAIProtocol):
        def answer(self, asked: Asked, upstream: Upstream) -> Reply:
            return Reply({"created": 1, "data": [{"url": f"http://hub-test.invalid/{upstream.link()}"}]})

    with serving(Linking()) as beside:
        write_remote(house.models, "beside", beside.url, leaves=False, price=None)

        async def test(hub: Hub, drawing: StandIn) -> None:
            looked_up = []

            async def resolve(host: str, port: int) -> list[str]:
                looked_up.append(host)
                return []

            hub._transport._resolve = resolve
            assert (await fails(hub.generate("beside", STAR))).code == "provider_failed"
            assert looked_up == []
            hub.settings.remote_keys.append("*")
            assert (await fails(hub.generate("beside", STAR))).code == "provider_failed"
            assert looked_up == ["hub-test.invalid"], "the detector works"

        house.run(test, remote_keys=[])


# ── money ──


KEYS = {"api_keys": {"alice": "sk-a"}, "remote_keys": ["alice"]}
ALICE = msgspec.structs.replace(STAR, owner="alice")


def test_a_target_beyond_the_budget_is_left_out(house: House) -> None:
    write_route(house.models, "far", "near")

    async def test(hub: Hub, drawing: StandIn) -> None:
        made = await hub.generate("image", ALICE)
        assert made.target == "near"
        assert "far was left out: it would cost about $0.04, and $0.03 of the budget is left" in made.warnings[0]
        error = await fails(hub.generate("image", ALICE))
        assert (error.status, error.code) == (402, "budget_exceeded")
        assert (len(house.near.work), len(house.far.work)) == (1, 0)

    house.run(test, budgets={"alice": 0.03}, **KEYS)


def test_a_model_without_a_price_is_not_for_who_has_a_budget(house: House) -> None:
    write_remote(house.models, "far", house.far.url, price=None)

    async def test(hub: Hub, drawing: StandIn) -> None:
        error = await fails(hub.generate("far", ALICE))
        assert (error.status, error.code) == (402, "budget_exceeded") and "`prices`" in error.message
        assert not house.far.asked

    house.run(test, budgets={"alice": 5.0}, **KEYS)


def test_a_spent_budget_leaves_what_costs_nothing(house: House) -> None:
    write_remote(house.models, "near", house.near.url, leaves=False, price=None)
    write_route(house.models, "far", "near", "small")

    async def test(hub: Hub, drawing: StandIn) -> None:
        assert (await hub.generate("image", ALICE)).target == "near"
        assert (await hub.generate("small", ALICE)).target == "small"

    house.run(test, budgets={"alice": 0.0}, **KEYS)


def test_the_budget_is_looked_at_again_where_it_is_spent(house: House) -> None:
    """Many at once, of which the budget allows two."""
    write_route(house.models, "near", "small")

    async def test(hub: Hub, drawing: StandIn) -> None:
        made = await asyncio.gather(*(hub.generate("image", ALICE) for _ in range(8)))
        assert sorted(each.target for each in made) == ["near"] * 2 + ["small"] * 6
        assert len(house.near.work) == 2
        assert await spent(hub, "alice") == 0.04

    house.run(test, budgets={"alice": 0.05}, **KEYS)


def test_many_at_once_beyond_the_budget_are_refused_before_anything_is_spent(house: House) -> None:
    async def test(hub: Hub, drawing: StandIn) -> None:
        made = await asyncio.gather(*(hub.generate("near", ALICE) for _ in range(6)), return_exceptions=True)
        assert sum(isinstance(each, BudgetExceeded) for each in made) == 4
        assert len(house.near.work) == 2

    house.run(test, budgets={"alice": 0.05}, **KEYS)


# ── time ──


def test_the_deadline_is_that_of_all_tries_together(house: House) -> None:
    write_route(house.models, "small", "far", deadline=1)
    house.far.faults.append(slow(30))

    async def test(hub: Hub, drawing: StandIn) -> None:
        drawing.error = OutOfMemory("It needs 9 GB.")
        began = time.monotonic()
        error = await fails(hub.generate("image", STAR))
        assert isinstance(error, ProviderTimeout) and error.status == 504
        told = "Nothing served 'image' within 1 seconds: small failed (out_of_memory); far was still at it."
        assert error.message == told
        assert error.may_have_billed and error.headers["x-should-retry"] == "false"
        assert time.monotonic() - began < 3
        assert await spent(hub) == 0.04, "it may have been billed"

    house.run(test)


def test_a_cancelled_request_asks_nobody_else_and_counts_as_what_it_may_have_cost(house: House) -> None:
    write_route(house.models, "near", "far", "small")
    house.near.faults.append(slow(30))

    async def test(hub: Hub, drawing: StandIn) -> None:
        task = asyncio.create_task(hub.generate("image", STAR))
        while not house.near.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not house.far.asked and not drawing.asked
        assert await spent(hub) == 0.02

    house.run(test)


@pytest.mark.parametrize("overdue", [False, True], ids=["cancelled", "overdue"])
def test_who_leaves_before_anything_was_sent_pays_nothing(house: House, overdue: bool) -> None:
    """While a provider that is busy is waited for: what it has refused it has not done."""
    write_route(house.models, "near", deadline=2 if overdue else 60)
    house.near.faults.append(answers(429, Retry_After="9"))

    async def test(hub: Hub, drawing: StandIn) -> None:
        task = asyncio.create_task(hub.generate("image", STAR))
        while not house.near.asked:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        if not overdue:
            task.cancel()
        found = (await asyncio.gather(task, return_exceptions=True))[0]
        assert isinstance(found, ProviderTimeout if overdue else asyncio.CancelledError)
        assert not getattr(found, "may_have_billed", False)
        assert await spent(hub) == 0

    house.run(test)


def test_a_provider_that_fails_again_and_again_is_left_alone(house: House) -> None:
    write_route(house.models, "near", "far")
    house.near.faults.extend([answers(500)] * FAILURES)

    async def test(hub: Hub, drawing: StandIn) -> None:
        for _ in range(FAILURES):
            await fails(hub.generate("near", STAR))
        made = await hub.generate("image", STAR)
        assert "near was left out: it failed again and again, and is left alone for 30 s" in made.warnings[0]
        error = await fails(hub.generate("near", STAR))
        assert isinstance(error, ProviderUnavailable) and error.headers["Retry-After"] == "30"
        assert len(house.near.work) == FAILURES

    house.run(test)


@pytest.mark.parametrize(
    "fault",
    [answers(404), answers(307, Location="http://192.0.2.1/"), raw(b'{"created": 1, "data": []}')],
    ids=["404", "307", "no picture"],
)
def test_no_key_closes_a_target_for_others_by_what_it_asks(house: House, fault: Any) -> None:
    house.near.faults.extend([fault] * 2 * FAILURES)

    async def test(hub: Hub, drawing: StandIn) -> None:
        for _ in range(2 * FAILURES):
            assert (await fails(hub.generate("near", STAR))).code == "provider_failed"
        assert (await hub.generate("near", ALICE)).target == "near"

    house.run(test, api_keys={"alice": "sk-a"})


def test_one_request_at_a_time_tries_it_again(house: House) -> None:
    house.near.faults.extend([answers(500)] * FAILURES)
    now = [100.0]

    async def test(hub: Hub, drawing: StandIn) -> None:
        hub._serving.breakers._now = lambda: now[0]
        for _ in range(FAILURES):
            await fails(hub.generate("near", STAR))
        now[0] += 31
        house.near.faults.append(slow(0.3))
        made = await asyncio.gather(*(hub.generate("near", STAR) for _ in range(5)), return_exceptions=True)
        assert [type(each).__name__ for each in made].count("ProviderUnavailable") == 4
        assert len(house.near.work) == FAILURES + 1
        assert (await hub.generate("near", STAR)).target == "near"

    house.run(test)


def test_many_that_wait_go_elsewhere(house: House) -> None:
    write_route(house.models, "small\nmax_waiting = 2", "far")

    class Busy(StandIn):
        async def generate(self, *asked: Any) -> ImageResult:
            await turn.wait()
            return await super().generate(*asked)

    turn = asyncio.Event()

    async def test(hub: Hub, drawing: StandIn) -> None:
        async def served() -> str:
            ask = Ask(owner=None, kind="image_generation", model="image", rendering=b"{}", output_format="png")
            job = await hub.jobs.submit(ask, lambda on_event: hub.generate("image", STAR, on_event))
            with hub.jobs.watching(job):
                return (await job.finished()).target

        hub._local = Busy()  # type: ignore[assignment]
        first = [asyncio.create_task(served()) for _ in range(4)]
        _, waiting = await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        assert len(waiting) == 3 and await served() == "far"
        turn.set()
        assert await asyncio.gather(*first) == ["small"] * 3 + ["far"], "those that came first stay"
        assert await served() == "small"

    house.run(test)


# ── what is told ──


def test_events_of_a_failed_try_are_followed_by_those_of_the_next(house: House) -> None:
    write_route(house.models, "small", "far")

    async def test(hub: Hub, drawing: StandIn) -> None:
        drawing.error = GenerationFailed("no")
        heard: list[Event] = []
        await hub.generate("image", STAR, heard.append)
        sizes = [str(each.size) for each in heard if isinstance(each, Accepted)]
        assert sizes == ["64x64", "1024x1024"]
        steps = [(each.step, each.steps) for each in heard if isinstance(each, Progress)]
        assert steps == [(3, 6), (0, 100), (100, 100)]

    house.run(test)


def test_a_job_begins_anew_with_the_next_target(house: House) -> None:
    write_route(house.models, "small", "far")

    async def test(hub: Hub, drawing: StandIn) -> None:
        drawing.error = GenerationFailed("no")
        seen: list[tuple[str, int, int]] = []
        ask = Ask(owner=None, kind="image_generation", model="image", rendering=b"{}", output_format="png")
        job = await hub.jobs.submit(ask, lambda on_event: hub.generate("image", STAR, on_event))
        with hub.jobs.watching(job), job.events() as queue:
            hear = job.hear

            def hearing(event: Event) -> None:
                hear(event)
                seen.append((job.row.status, job.row.step, job.row.steps))

            job.hear = hearing  # type: ignore[method-assign]
            while await queue.get() is not None:
                pass
            result = await job.finished()
        assert seen == [
            ("queued", 0, 0),  # accepted here
            ("in_progress", 3, 6),
            ("queued", 0, 0),  # accepted there: all begins anew
            ("in_progress", 0, 100),
            ("in_progress", 100, 100),
        ]
        assert result.target == "far"
        assert job.plan is not None and str(job.plan.size) == "1024x1024"
        assert job.row.status == "completed" and job.row.step == job.row.steps == 100

    house.run(test)


def test_targets_that_are_not_there_are_told_at_the_start(house: House, caplog: pytest.LogCaptureFixture) -> None:
    write_route(house.models, "was-here", "small")
    write_route(house.models, "image", name="other")
    with caplog.at_level(logging.ERROR):
        Hub(house.settings())
    assert "image: its target was-here is left out: it is no model of this hub" in caplog.text
    assert "other: its target image is left out: it is a route itself" in caplog.text


def test_no_key_and_none_of_the_providers_words_are_told(house: House, caplog: pytest.LogCaptureFixture) -> None:
    write_route(house.models, "near", "far")
    house.near.faults.append(answers(401))

    async def test(hub: Hub, drawing: StandIn) -> None:
        with caplog.at_level(logging.DEBUG):
            made = await hub.generate("image", STAR)
        assert "secret words" not in caplog.text + str(made.warnings)
        assert KEY not in caplog.text + str(made.warnings)

    house.run(test)
