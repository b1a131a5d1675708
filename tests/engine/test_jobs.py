from __future__ import annotations

import io
import itertools
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from hub.engine.arguments import NO_PREVIEWS, Refused, arguments_for
from hub.engine.jobs import Blocked, Job, Outbox, failed_by, to_uint8
from hub.engine.protocol import (
    Cancel,
    EngineModel,
    Failed,
    Finished,
    FromWorker,
    Generate,
    Picture,
    Previewed,
    Stepped,
    from_worker,
    receive_frame,
)
from hub.engine.residency import Residency
from hub.engine.worker import Worker
from hub.pipelines.auto import LoadedPipeline
from hub.pipelines.loading import load_pipeline
from hub.types import Size

ALL = Residency(torch.device("cpu"))
"""A device with room for everything."""


def test_a_picture_is_scaled_and_rounded_to_the_nearest_level() -> None:
    picture = torch.tensor([[[0.0, 1.0]], [[0.5, 0.25]], [[-1.0, 2.0]]])  # 3 x 1 x 2
    assert to_uint8(picture).tolist() == [[[0, 128, 0], [255, 64, 255]]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(ArithmeticError):
        to_uint8(torch.tensor([[[0.5]], [[bad]], [[0.5]]]))


def test_what_a_client_reads_of_a_failure_never_holds_the_exceptions_own_words() -> None:
    secret = "/srv/weights at 0x7f00deadbeef"
    for error in (RuntimeError(secret), OSError(secret), ArithmeticError(secret)):
        failed = failed_by(1, error)
        assert failed.kind == "failed"
        assert "/srv" not in failed.message
        assert "0x" not in failed.message
    assert failed_by(1, Refused("image", "No.")).param == "image"
    assert failed_by(1, Blocked()).kind == "blocked"


# What leaves a request, and in which order


def test_messages_leave_in_the_order_of_their_tickets_whichever_is_ready_first() -> None:
    said: list[Any] = []
    outbox = Outbox(said.append)
    tickets = [outbox.ticket() for _ in range(5)]
    for ticket in (3, 1, 4, 0):
        outbox.put(tickets[ticket], lambda ticket=ticket: Stepped(ticket, 0, 0))
    assert [each.id for each in said] == [0, 1]
    outbox.put(tickets[2], lambda: None)  # one that has nothing to say holds nobody up
    assert [each.id for each in said] == [0, 1, 3, 4]


def test_nothing_leaves_after_the_answer_or_after_the_end() -> None:
    said: list[Any] = []
    outbox = Outbox(said.append)
    first, second, third = (outbox.ticket() for _ in range(3))
    outbox.put(third, lambda: Stepped(3, 0, 0))
    outbox.put(second, lambda: Finished(1, [], []))
    outbox.put(first, lambda: Stepped(1, 0, 0))
    outbox.close(Failed(1, "failed", "too late"))
    assert said == [Stepped(1, 0, 0), Finished(1, [], [])]
    cancelled = Outbox(said.append)
    ticket = cancelled.ticket()
    cancelled.close()
    cancelled.put(ticket, lambda: Stepped(9, 0, 0))
    cancelled.close(Failed(1, "failed", "too late"))
    assert len(said) == 2


def test_two_threads_that_take_turns_at_random_neither_reorder_nor_wait_for_each_other() -> None:
    said: list[Any] = []
    outbox = Outbox(said.append)
    chance = random.Random(0)

    def work(ticket: int, pause: float) -> None:
        time.sleep(pause)
        outbox.put(ticket, lambda: Stepped(ticket, 0, 0))

    with ThreadPoolExecutor(2) as encoders:
        for _ in range(300):
            encoders.submit(work, outbox.ticket(), chance.random() / 500)
    assert [each.id for each in said] == list(range(300))


@pytest.fixture(scope="module")
def loaded(small_stable_diffusion: Path) -> LoadedPipeline:
    return load_pipeline(str(small_stable_diffusion), "float32", torch.device("cpu"))


def wish(**changes: Any) -> Generate:
    plain = Generate(
        id=1,
        model=EngineModel("small", "", "float32"),
        task="text-to-image",
        prompt="a",
        seeds=[3],
        native=Size(64, 64),
        output=Size(64, 64),
        num_inference_steps=8,
        guidance_scale=3.0,
    )
    return msgspec.structs.replace(plain, **changes)


def run(job: Job, said: list[FromWorker], index: int = 0) -> Any:
    """One picture alone, without a weave, its previews encoded on the spot."""
    draw, _, _ = job.body(index)
    with torch.no_grad():
        pixels = draw()
    job.encode(job.outbox.ticket(), index, pixels)
    return pixels


def on_the_spot(job: Job, index: int, partial: int, pixels: Any) -> None:
    job.encode_preview(job.outbox.ticket(), index, partial, pixels)


def test_previews_come_in_order_before_the_answer_and_the_picture_is_the_same_without_them(
    loaded: LoadedPipeline,
) -> None:
    said: list[Any] = []
    job = Job(wish(seeds=[3, 4], partial_images=3), loaded, said.append, on_the_spot, ALL)
    drawn = [run(job, said, index) for index in range(2)]
    assert [(each.index, each.partial) for each in said[:-1]] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert isinstance(said[-1], Finished)
    plain = Job(wish(seeds=[3, 4]), loaded, [].append, on_the_spot, ALL)
    assert all(np.array_equal(run(plain, [], index), drawn[index]) for index in range(2))


def test_a_preview_is_finished_like_the_picture(loaded: LoadedPipeline) -> None:
    said: list[Any] = []
    asked = wish(partial_images=1, output=Size(100, 80), output_format="webp", output_compression=50)
    run(Job(asked, loaded, said.append, on_the_spot, ALL), said)
    preview, finished = said
    for data in (preview.image, *finished.images):
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.format, picture.size) == ("WEBP", (100, 80))
            assert "Seed: 3" in picture.getexif()[0x010E]


def test_a_preview_that_fails_on_the_device_does_not_fail_the_picture(
    loaded: LoadedPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert loaded.viewer is not None
    monkeypatch.setattr(loaded.viewer, "show", lambda latents: torch.full((3, 8, 8), float("nan")))
    said: list[Any] = []
    run(Job(wish(partial_images=2), loaded, said.append, on_the_spot, ALL), said)
    assert [type(each) for each in said] == [Finished]
    assert caplog.text.count("a preview failed") == 2


def test_a_preview_that_cannot_be_encoded_does_not_fail_the_picture(
    loaded: LoadedPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[Any] = []

    def broken(job: Job, index: int, partial: int, pixels: Any) -> None:
        job.encode_preview(job.outbox.ticket(), index, partial, pixels[..., :2] if partial == 0 else pixels)

    run(Job(wish(partial_images=2), loaded, said.append, broken, ALL), said)
    assert [type(each) for each in said] == [Previewed, Finished]
    assert "could not be encoded" in caplog.text


def test_latents_of_an_unknown_form_give_no_previews_and_a_word(
    loaded: LoadedPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded.viewer is not None
    monkeypatch.setattr(loaded.viewer, "unfolded", lambda *_: None)
    said: list[Any] = []
    run(Job(wish(partial_images=3), loaded, said.append, on_the_spot, ALL), said)
    (finished,) = said
    assert finished.notices == [NO_PREVIEWS]


def test_a_model_without_previews_tells_so_at_once_and_refuses_where_the_request_is_strict(
    loaded: LoadedPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(loaded), "_viewer", None)
    assert arguments_for(wish(partial_images=1), loaded)[1] == [NO_PREVIEWS]
    assert arguments_for(wish(), loaded)[1] == []
    with pytest.raises(Refused) as caught:
        arguments_for(wish(partial_images=1, strict=True), loaded)
    assert caught.value.param == "partial_images"


def test_a_slow_first_preview_holds_the_answer_back_and_no_thread(loaded: LoadedPipeline) -> None:
    said: list[Any] = []
    gate = threading.Event()
    with ThreadPoolExecutor(2) as encoders:

        def slow(job: Job, index: int, partial: int, pixels: Any) -> None:
            ticket = job.outbox.ticket()

            def work() -> None:
                if partial == 0:
                    gate.wait(20)
                job.encode_preview(ticket, index, partial, pixels)

            encoders.submit(work)

        job = Job(wish(partial_images=3), loaded, said.append, slow, ALL)
        run(job, said)
        encoders.submit(int).result(20)  # the second thread is free again
        assert said == []
        gate.set()
    assert [type(each) for each in said] == [Previewed] * 3 + [Finished]


def test_a_mask_for_a_pipeline_that_cannot_is_refused_by_name(loaded: LoadedPipeline) -> None:
    other = object.__new__(LoadedPipeline)
    other._base = loaded._base
    other._tasks = {"text-to-image": loaded._base}
    for task, param in (("inpainting", "mask"), ("image-to-image", "image")):
        with pytest.raises(Refused) as caught:
            arguments_for(wish(task=task), other)
        assert caught.value.param == param


def test_inpainting_gets_its_mask_the_size_and_its_strength_and_no_crop(loaded: LoadedPipeline) -> None:
    asked = wish(task="inpainting", images=[Picture(64, 64, bytes(64 * 64 * 3))], mask=b"\xff" * 64 * 64, strength=1.0)
    arguments, notices = arguments_for(asked, loaded)
    assert notices == []
    assert arguments["mask_image"].mode == "L"
    assert arguments["mask_image"].size == (64, 64)
    assert (arguments["width"], arguments["height"], arguments["strength"]) == (64, 64, 1.0)
    assert "padding_mask_crop" not in arguments


def test_latents_that_cannot_be_shown_give_no_previews_and_no_failure(
    loaded: LoadedPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("hub.pipelines.auto.viewer_for", fail)
    fresh = LoadedPipeline(loaded._base)
    assert fresh.viewer is None
    assert arguments_for(wish(partial_images=1), fresh)[1] == [NO_PREVIEWS]


@pytest.fixture
def worker() -> Iterator[tuple[Worker, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Worker(ours, torch.device("cpu"), 4), theirs


def test_a_preview_that_the_answer_had_waited_for_leaves_nothing_behind(
    worker: tuple[Worker, socket.socket], loaded: LoadedPipeline
) -> None:
    job = Job(wish(partial_images=1), loaded, lambda _: None, lambda *_: None, ALL)
    pixels = np.zeros((64, 64, 3), np.uint8)
    preview, picture = job.outbox.ticket(), job.outbox.ticket()
    worker[0]._pictures._encode(job, picture, 0, pixels)
    assert worker[0].inbox.empty(), "the picture waits for the preview"
    worker[0]._pictures._encode_preview(job, preview, 0, 0, pixels)
    assert worker[0].inbox.get_nowait() == Cancel(job.request.id)


def test_a_request_that_cannot_be_started_fails_alone(
    worker: tuple[Worker, socket.socket], loaded: LoadedPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("hub.engine.jobs.arguments_for", fail)
    worker[0]._start(wish(), loaded)
    frame = receive_frame(worker[1])
    assert frame is not None
    said = from_worker.decode(frame)
    assert isinstance(said, Failed)
    assert "secret" not in said.message
    assert not worker[0]._pictures._jobs


def test_news_of_progress_come_first_last_and_not_too_often_between(
    loaded: LoadedPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("hub.engine.jobs.time", SimpleNamespace(monotonic=lambda: now[0]))
    job = Job(wish(seeds=[3, 4], progress=True), loaded, lambda _: None, lambda *_: None, ALL)
    said = []
    for step in range(1, 11):
        for picture in (0, 1):
            said.append(job.stepped(picture, step, 10))
            now[0] += 0.03
    steps = [each.step for each in said if each is not None]
    assert steps[0] == 1 and steps[-1] == 20
    assert all(b - a == 4 for a, b in itertools.pairwise(steps[:-1]))  # each 0.12 s
    silent = Job(wish(seeds=[3]), loaded, lambda _: None, lambda *_: None, ALL)
    assert [silent.stepped(0, step, 2) for step in (1, 2)] == [None, None]
