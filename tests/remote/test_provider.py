"""The driver of remote providers: what is sent again, what may have cost something, and what is left behind."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec import structs

from hub.errors import (
    HubError,
    InvalidRequest,
    ModelUnusable,
    ProviderBusy,
    ProviderError,
    ProviderFailed,
    ProviderKeyRefused,
    ProviderTimeout,
    ProviderUnavailable,
)
from hub.manifest import RemoteDefaults
from hub.remote import caller, works
from hub.remote.adapter import Adapter, Answer, Call, Made, Pending
from hub.remote.caller import Caller
from hub.remote.credentials import Credentials, Key, Keys
from hub.remote.provider import RemoteProvider
from hub.remote.transport import Transport
from hub.remote.wish import Wish, plan
from hub.remote.works import Works
from hub.types import Event, ImageRequest, ImageResult, Preview, Progress, Size
from tests.remote.fake import (
    FAKE,
    SECRET,
    Heard,
    Reaction,
    Server,
    body_of,
    drops,
    hangs,
    http,
    manifest,
    png,
    says,
    serving,
    streams,
)

GOOD = says(body_of(png()))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "BACKOFF", 0.02)
    monkeypatch.setattr(caller, "SHORTEST_POLL", 0.01)
    monkeypatch.setattr(works, "GRACE", 0.3)


class Asking:
    """A hub's remote side, and a server."""

    def __init__(self, server: Server, keys: Keys, adapter: Adapter, through: Transport) -> None:
        self.server = server
        self.keys = keys
        self.events: list[Event] = []
        self.provider = RemoteProvider(lambda _: adapter, through, Credentials({"test": keys}))

    async def make(self, remote: dict[str, Any] | None = None, **wishes: Any) -> ImageResult:
        model = manifest(**{"base_url": self.server.url, **(remote or {})})
        return await self.provider.generate(model, ImageRequest(**{"prompt": "x", **wishes}), self.events.append)

    async def fail(self, remote: dict[str, Any] | None = None, **wishes: Any) -> Any:
        with pytest.raises(HubError) as caught:
            await self.make(remote, **wishes)
        assert SECRET not in str(caught.value)
        return caught.value


def run(
    test: Callable[[Asking], Coroutine[Any, Any, None]],
    *reactions: Reaction,
    adapter: Adapter = FAKE,
    keys: Keys | None = None,
) -> None:
    async def main() -> None:
        through = Transport()
        async with asyncio.timeout(20), serving(*reactions) as server:
            async with through.running():
                await test(Asking(server, keys or Keys([Key("test", SECRET)]), adapter, through))
                left = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
                assert left - {"run.<locals>.main", "Server.serve"} == set(), left
            await asyncio.sleep(0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
        gc.collect(1)


def test_n_beyond_what_a_call_makes_is_had_by_calls_side_by_side() -> None:
    async def test(asking: Asking) -> None:
        result = await asking.make({"max_n": 2}, n=5)
        assert len(result.images) == 5
        assert sorted((each.json["n"], each.json["first"]) for each in asking.server.posts) == [(1, 4), (2, 0), (2, 2)]

    async def draw(heard: Heard, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, n = heard.json["first"], heard.json["n"]
        await says(body_of(*(png(first + each) for each in range(n))))(heard, _, writer)

    run(test, draw)


def test_pictures_come_in_their_order_whichever_call_ends_first() -> None:
    async def test(asking: Asking) -> None:
        assert (await asking.make(n=3)).images == (png(0), png(1), png(2))

    async def draw(heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05 * (2 - heard.json["first"]))
        await says(body_of(png(heard.json["first"])))(heard, reader, writer)

    run(test, draw)


def test_an_answer_with_fewer_pictures_is_given_with_a_warning_and_one_with_more_is_cut() -> None:
    async def test(asking: Asking) -> None:
        result = await asking.make({"max_n": 4}, n=3)
        assert len(result.images) == 2
        assert result.warnings == ("n: Fake made 2 of 3 pictures",)
        assert len((await asking.make({"max_n": 4}, n=1)).images) == 1

    run(test, says(body_of(png(1), png(2))))


def test_costs_are_summed_only_where_every_call_tells_them() -> None:
    async def test(asking: Asking) -> None:
        assert (await asking.make(n=2)).cost == pytest.approx(0.5)
        assert (await asking.make(n=2)).cost is None

    run(test, *[says(body_of(png(), cost=0.25))] * 3, GOOD)


def test_when_one_call_fails_its_sisters_are_stopped_and_may_have_cost_something() -> None:
    async def test(asking: Asking) -> None:
        error = await asking.fail(n=4)
        assert isinstance(error, ProviderKeyRefused)
        assert error.may_have_billed
        assert error.headers["x-should-retry"] == "false"

    run(test, hangs, hangs, says(b"{}", 402), hangs)


def after(seconds: float, reaction: Reaction) -> Reaction:
    async def react(heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        await reaction(heard, reader, writer)

    return react


@pytest.mark.parametrize("reactions", [(GOOD, after(0.1, says(b"{}", 400))), (says(b"{}", 400), after(0.1, GOOD))])
def test_a_request_that_is_refused_in_part_may_have_cost_something(reactions: tuple[Reaction, Reaction]) -> None:
    async def test(asking: Asking) -> None:
        error = await asking.fail(n=2)
        assert isinstance(error, InvalidRequest)
        assert error.may_have_billed
        assert error.headers["x-should-retry"] == "false"

    run(test, *reactions)


@pytest.mark.parametrize("status", [400, 429, 503])
def test_a_request_of_which_all_calls_are_refused_has_cost_nothing_whichever_is_refused_first(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(works, "GRACE", 20)

    async def test(asking: Asking) -> None:
        error = await asking.fail(n=10)
        assert not error.may_have_billed
        assert len(asking.server.posts) == 4

    refuses = says(b"{}", status, Retry_After="60")
    run(test, refuses, after(0.2, refuses))


def test_a_request_is_given_up_as_soon_as_it_is_known_to_cost_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "GRACE", 19)

    async def test(asking: Asking) -> None:
        start = asyncio.get_running_loop().time()
        assert (await asking.fail(n=3)).may_have_billed
        assert asyncio.get_running_loop().time() - start < 10

    run(test, says(b"{}", 400), after(0.1, GOOD), hangs)


@pytest.mark.parametrize(("reaction", "costs"), [(GOOD, False), (hangs, True)])
def test_a_request_that_is_cancelled_costs_nothing_before_it_was_sent(reaction: Reaction, costs: bool) -> None:
    async def test(asking: Asking) -> None:
        if not costs:
            asking.keys.rest(asking.keys.all[0], 5)
        told = Works()
        model = manifest(asking.server.url)
        task = asyncio.create_task(asking.provider.generate(model, ImageRequest(prompt="x"), works=told))
        await asyncio.sleep(0.1)
        while costs and not asking.server.posts:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
        assert told.may_be_billed is costs

    run(test, reaction)


def test_each_of_several_calls_has_the_time_that_the_manifest_gives_one() -> None:
    async def test(asking: Asking) -> None:
        assert len((await asking.make({"timeout": 1.2}, n=9)).images) == 9

    run(test, after(0.5, GOOD))


def test_when_all_calls_are_refused_nothing_has_cost_anything() -> None:
    async def test(asking: Asking) -> None:
        error = await asking.fail(n=2)
        assert isinstance(error, ProviderBusy)
        assert not error.may_have_billed

    run(test, says(b"{}", 503))


def test_out_of_time_before_anything_was_sent_has_cost_nothing() -> None:
    """The key rests for as long as the request waits."""

    async def test(asking: Asking) -> None:
        asking.keys.rest(asking.keys.all[0], 5)
        error = await asking.fail({"timeout": 0.1})
        assert isinstance(error, ProviderTimeout)
        assert not error.may_have_billed
        assert asking.server.heard == []

    run(test, GOOD)


def test_out_of_time_in_a_retry_after_a_refusal_has_cost_nothing() -> None:
    async def test(asking: Asking) -> None:
        error = await asking.fail({"timeout": 0.3})
        assert isinstance(error, ProviderTimeout)
        assert not error.may_have_billed

    run(test, says(b"{}", 429, Retry_After="5"))


def test_out_of_time_while_the_provider_works_may_have_cost_something() -> None:
    async def test(asking: Asking) -> None:
        error = await asking.fail({"timeout": 0.2}, n=2)
        assert isinstance(error, ProviderTimeout)
        assert error.may_have_billed

    run(test, says(b"{}", 429, Retry_After="5"), hangs)


def test_a_key_that_was_told_to_wait_delays_other_requests_instead_of_failing_them() -> None:
    async def test(asking: Asking) -> None:
        first, second = await asyncio.gather(asking.make(), asking.make())
        assert first.images == second.images
        assert len(asking.server.posts) == 3

    run(test, says(b"{}", 429), GOOD)


def test_a_busy_provider_without_keys_is_given_the_time_that_it_asks_for() -> None:
    class Open(type(FAKE)):  # type: ignore[misc]
        needs_key = False

    async def test(asking: Asking) -> None:
        error = await asking.fail({"credentials": None})
        assert isinstance(error, ProviderBusy)
        assert error.retry_after == 60
        assert len(asking.server.posts) == 1

    run(test, says(b"{}", 503, Retry_After="60"), adapter=Open())


def test_after_a_busy_answer_another_key_is_used_at_once() -> None:
    async def test(asking: Asking) -> None:
        start = asyncio.get_running_loop().time()
        await asking.make()
        assert asyncio.get_running_loop().time() - start < 2
        sent = {each.headers["authorization"] for each in asking.server.posts}
        assert len(sent) == 2

    run(test, says(b"{}", 429, Retry_After="9"), GOOD, keys=Keys([Key("a", SECRET), Key("b", "other")]))


def test_every_key_is_tried_before_the_provider_is_said_to_refuse_them() -> None:
    async def test(asking: Asking) -> None:
        await asking.make()
        assert len({each.headers["authorization"] for each in asking.server.posts}) == 5

    keys = Keys([Key(str(each), f"{SECRET}-{each}") for each in range(5)])
    run(test, *[says(b"{}", 401)] * 4, GOOD, keys=keys)


def test_a_key_that_was_refused_is_tried_again_after_a_while() -> None:
    now = [100.0]

    async def test(asking: Asking) -> None:
        for wait in (0, 29):  # refused, then left alone
            now[0] += wait
            assert isinstance(await asking.fail(), ProviderKeyRefused)
            assert len(asking.server.posts) == 1
        now[0] += 2
        await asking.make()
        assert len(asking.server.posts) == 2

    run(test, says(b"{}", 401), GOOD, keys=Keys([Key("test", SECRET)], lambda: now[0]))


@pytest.mark.parametrize(("status", "served"), [(401, False), (402, False), (403, True)])
def test_a_key_that_is_refused_for_one_model_serves_the_others(status: int, served: bool) -> None:
    async def test(asking: Asking) -> None:
        error = await asking.fail()
        assert isinstance(error, ProviderKeyRefused)
        assert error.headers["x-should-retry"] == "false"
        assert isinstance(await asking.fail(), ProviderKeyRefused)
        assert len(asking.server.posts) == 1
        other = structs.replace(manifest(asking.server.url), id="fake/other")
        asked = asking.provider.generate(other, ImageRequest(prompt="x"))
        if served:
            await asked
        else:
            with pytest.raises(ProviderKeyRefused):
                await asked

    run(test, says(b"{}", status), GOOD)


def test_without_a_key_nothing_is_sent() -> None:
    async def test(asking: Asking) -> None:
        assert isinstance(await asking.fail(), ProviderUnavailable)
        assert asking.server.heard == []

    run(test, GOOD, keys=Keys([]))


def test_without_an_address_the_owner_is_told() -> None:
    async def test(asking: Asking) -> None:
        assert isinstance(await asking.fail({"base_url": None}), ModelUnusable)

    run(test, GOOD)


@pytest.mark.parametrize("error", [KeyError("secret"), IndexError(), TypeError(), AttributeError(), RecursionError()])
def test_what_an_adapter_did_not_think_of_is_an_answer_that_is_none(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(type(FAKE)):  # type: ignore[misc]
        def read(self, wish: Wish, answer: Answer) -> Made | Pending:
            raise error

        def refusal(self, answer: Answer) -> HubError:
            raise error

    async def test(asking: Asking) -> None:
        for _ in range(2):
            failed = await asking.fail()
            assert isinstance(failed, ProviderFailed)
            assert failed.may_have_billed
        assert len(asking.server.posts) == 2

    caplog.set_level(logging.DEBUG)
    run(test, GOOD, says(b"{}", 500), adapter=Broken())
    assert "secret" not in caplog.text
    assert "test_provider.py" in caplog.text


def job(path: str = "/job", **more: str) -> Reaction:
    return says(json.dumps({"job": path, **more}).encode())


def test_a_job_is_asked_about_until_it_is_done() -> None:
    async def test(asking: Asking) -> None:
        assert (await asking.make()).images == (png(),)
        assert [each.method for each in asking.server.heard] == ["POST", "GET", "GET", "GET"]
        steps = [event.step for event in asking.events if isinstance(event, Progress)]
        assert max(steps) == 100
        assert steps == sorted(steps)

    run(test, job(), job(), job("/other"), GOOD)


def test_a_job_that_nobody_waits_for_any_more_is_cancelled_at_the_provider() -> None:
    async def test(asking: Asking) -> None:
        task = asyncio.create_task(asking.make())
        while len(asking.server.heard) < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while asking.server.heard[-1].method != "DELETE":
            await asyncio.sleep(0.01)
        assert asking.server.heard[-1].path == "/gone"
        assert SECRET in asking.server.heard[-1].headers["authorization"]
        await asyncio.sleep(0.05)

    run(test, job(cancel="/gone"))


def test_a_cancellation_is_on_its_way_before_the_hub_ends() -> None:
    async def main() -> list[str]:
        through = Transport()
        async with serving(job(cancel="/gone")) as server:
            async with through.running():
                asking = Asking(server, Keys([Key("test", SECRET)]), FAKE, through)
                task = asyncio.create_task(asking.make())
                while len(server.heard) < 2:
                    await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.wait({task})
            return [each.method for each in server.heard]

    assert asyncio.run(main())[-1] == "DELETE"


def test_a_job_that_takes_too_long_is_cancelled_and_may_have_cost_something() -> None:
    async def test(asking: Asking) -> None:
        error = await asking.fail({"timeout": 0.2})
        assert isinstance(error, ProviderTimeout)
        assert error.may_have_billed
        await asyncio.sleep(0.1)
        assert asking.server.heard[-1].method == "DELETE"

    run(test, job(cancel="/gone"))


def test_a_question_that_hangs_is_given_up_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(asking: Asking) -> None:
        assert (await asking.make()).images == (png(),)

    monkeypatch.setattr(caller, "POLL_TIMEOUT", 0.1)
    run(test, job(), hangs, GOOD)


@pytest.mark.parametrize(
    "place",
    [
        "https://evil.example/job",
        "http://fake.example.evil.example/job",
        "http://fake.example@evil.example/job",
        "http://fake.example:8080/job",
        "http://127.0.0.1/job",
        "@evil.example/job",
        ".evil.example/job",
        "//evil.example/job",
        "http://fake.example/job",
        "http://fake.example\\@evil.example",
        "http://evil.example\t.fake.example/",
        "file:///etc/passwd",
        "",
    ],
)
def test_a_key_is_not_sent_where_an_answer_points_to(place: str) -> None:
    async def test(asking: Asking) -> None:
        error = await asking.fail()
        assert isinstance(error, ProviderFailed)
        assert error.may_have_billed
        assert {each.headers["host"] for each in asking.server.heard} == {asking.server.url.removeprefix("http://")}

    run(test, job(place), says(b"{}", 404))


@pytest.mark.parametrize(
    ("base", "own"), [("https://eu.fake.example/v1", True), ("https://proxy.example", False), ("https://e.x", False)]
)
def test_a_providers_other_domains_get_the_key_only_where_its_own_was_asked(base: str, own: bool) -> None:
    model = manifest(base)
    asking = Caller(Transport(), FAKE, plan(model, FAKE.honours, ImageRequest(prompt="x")), Keys(()))
    assert asking._url(f"{base}/job") == f"{base}/job"
    named = "https://us.fake.example/job"
    if own:
        assert asking._url(named) == named
    else:
        with pytest.raises(ProviderFailed):
            asking._url(named)


def test_a_question_that_is_refused_is_asked_again_and_then_given_up_with_its_job() -> None:
    async def test(asking: Asking) -> None:
        assert (await asking.make()).images == (png(),)
        asking.server.reactions[:] = [job(cancel="/gone"), says(b"{}", 400)]
        asking.server.heard.clear()
        error = await asking.fail()
        assert isinstance(error, ProviderFailed)
        assert error.may_have_billed
        await asyncio.sleep(0.1)
        assert [each.method for each in asking.server.heard] == ["POST", *["GET"] * caller.POLL_FAILURES, "DELETE"]

    run(test, job(), says(b"{}", 422), GOOD)


def test_an_answer_to_a_question_may_take_its_time_once_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    async def drips(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = http(body_of(png()))
        writer.write(answer[:-9])
        await asyncio.sleep(0.6)
        writer.write(answer[-9:])

    async def test(asking: Asking) -> None:
        await asking.make()
        assert [each.method for each in asking.server.heard] == ["POST", "GET"]

    monkeypatch.setattr(caller, "POLL_TIMEOUT", 0.3)
    run(test, job(), drips)


@pytest.mark.parametrize(
    ("prompts", "told"), [((), ()), (("a",), ("a", "")), (("a", "b", "c"), ("a", "b")), (("", "b"), ("", "b"))]
)
def test_each_picture_has_its_own_revised_prompt_or_an_empty_one(
    prompts: tuple[str, ...], told: tuple[str, ...]
) -> None:
    class Revising(type(FAKE)):  # type: ignore[misc]
        def read(self, wish: Wish, answer: Answer) -> Made | Pending:
            made = super().read(wish, answer)
            assert isinstance(made, Made)
            return structs.replace(made, revised_prompts=prompts)

    async def test(asking: Asking) -> None:
        assert (await asking.make({"max_n": 2}, n=4)).revised_prompts == told * 2

    run(test, says(body_of(png(), png(), png())), adapter=Revising())


def test_another_size_is_told_only_to_who_has_asked_for_one() -> None:
    async def test(asking: Asking) -> None:
        model = structs.replace(manifest(asking.server.url), defaults=RemoteDefaults(size="1024x1024"))
        made = await asking.provider.generate(model, ImageRequest(prompt="x"))
        assert made.warnings == ()
        made = await asking.provider.generate(model, ImageRequest(prompt="x", size=Size(512, 512)))
        assert made.warnings == ("size: Fake made 64x64 instead of 512x512",)

    run(test, GOOD)


def picture(data: bytes) -> bytes:
    import base64

    return json.dumps({"partial": base64.b64encode(data).decode()}).encode()


def test_previews_of_a_stream_are_passed_on_and_broken_ones_left_out() -> None:
    async def test(asking: Asking) -> None:
        result = await asking.make(partial_images=2)
        assert result.images == (png(9),)
        assert [event.image for event in asking.events if isinstance(event, Preview)] == [png(1)]

    run(test, streams(("p", picture(png(1))), ("p", picture(b"HTML")), ("done", body_of(png(9)))))


def test_a_stream_that_ends_early_is_an_error_and_one_that_was_refused_at_once_is_sent_again() -> None:
    async def test(asking: Asking) -> None:
        error = await asking.fail(partial_images=1)
        assert isinstance(error, ProviderFailed)
        assert error.may_have_billed
        assert len(asking.server.posts) == 1
        assert (await asking.make(partial_images=1)).images == (png(9),)
        assert len(asking.server.posts) == 3

    run(
        test,
        streams(("p", picture(png(1))), end=b'data: {"pictures"'),
        streams(("error", b"{}")),
        streams(("done", body_of(png(9)))),
    )


def test_a_stream_that_fails_after_a_preview_is_not_sent_again() -> None:
    async def test(asking: Asking) -> None:
        error = await asking.fail(partial_images=1)
        assert isinstance(error, ProviderBusy)
        assert error.may_have_billed
        assert len(asking.server.posts) == 1

    run(test, streams(("p", picture(png(1))), ("error", b"{}")))


def test_a_stream_that_was_asked_for_may_be_answered_whole() -> None:
    async def test(asking: Asking) -> None:
        assert (await asking.make(partial_images=1)).images == (png(),)

    run(test, GOOD)


def test_a_cancelled_stream_closes_its_connection() -> None:
    async def test(asking: Asking) -> None:
        task = asyncio.create_task(asking.make(partial_images=1))
        while not any(isinstance(event, Preview) for event in asking.events):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test, streams(("p", picture(png(1))), pause=30))


def test_one_download_that_fails_stops_the_others() -> None:
    async def test(asking: Asking) -> None:
        url = asking.server.url
        links = json.dumps({"links": [f"{url}/1", f"{url}/2", f"{url}/3"]}).encode()
        asking.server.reactions[:] = [says(links), hangs, says(b"gone", 404), hangs]
        error = await asking.fail({"max_n": 3}, n=3)
        assert isinstance(error, ProviderFailed)
        assert error.may_have_billed

    run(test, GOOD)


def test_a_listener_that_fails_does_not_end_the_request() -> None:
    async def test(asking: Asking) -> None:
        def broken(_: Event) -> None:
            raise ValueError

        result = await asking.provider.generate(manifest(asking.server.url), ImageRequest(prompt="x"), broken)
        assert result.images == (png(),)

    run(test, GOOD)


def test_what_cannot_be_asked_for_is_told_before_anything_is_sent() -> None:
    class Picky(type(FAKE)):  # type: ignore[misc]
        def call(self, wish: Wish, n: int, first: int) -> Call:
            if first == 2:
                raise InvalidRequest("no", param="seed")
            return Call("/work", json={})

    async def test(asking: Asking) -> None:
        assert (await asking.fail(n=3)).param == "seed"
        assert asking.server.heard == []

    run(test, GOOD, adapter=Picky())


def test_each_error_is_an_object_of_its_own() -> None:
    """One that several requests shared would grow with each."""

    async def test(asking: Asking) -> None:
        errors = await asyncio.gather(*(asking.make() for _ in range(5)), return_exceptions=True)
        assert len({id(error) for error in errors}) == 5
        assert all(isinstance(error, ProviderError) for error in errors)

    run(test, drops)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (says(b"{}", 400), InvalidRequest),
        (says(b"{}", 429, Retry_After="60"), ProviderBusy),
        (says(b"{}", 500), ProviderFailed),
        (drops, ProviderFailed),
    ],
    ids=["400", "429", "500", "cut"],
)
def test_whatever_one_call_fails_with_its_sisters_may_have_been_billed(fault: Reaction, error: type[HubError]) -> None:
    async def fails(heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)  # until its sisters are at work
        await fault(heard, reader, writer)

    async def test(asking: Asking) -> None:
        told = await asking.fail(n=3)
        assert isinstance(told, error) and told.may_have_billed
        assert told.headers["x-should-retry"] == "false"
        assert len(asking.server.posts) == 3

    run(test, fails, hangs)


def test_a_stream_that_is_refused_after_previews_may_have_been_billed() -> None:
    class Refusing(type(FAKE)):  # type: ignore[misc]
        def event(self, wish: Wish, name: str, data: bytes) -> Any:
            if name == "error":
                raise self.refusal(Answer(400, {}, data))
            return super().event(wish, name, data)

    async def test(asking: Asking) -> None:
        told = await asking.fail(partial_images=1)
        assert isinstance(told, InvalidRequest) and told.may_have_billed
        asking.server.reactions = [streams(("error", b"{}"))]
        assert not (await asking.fail(partial_images=1)).may_have_billed, "nothing was shown"

    preview = json.dumps({"partial": base64.b64encode(png()).decode()}).encode()
    run(test, streams(("partial", preview), ("error", b"{}")), adapter=Refusing())
