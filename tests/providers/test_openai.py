"""OpenAI: what is sent for each parameter, by model, and what is made of its answers, streams and errors."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from openai import OpenAI
from openai.types import ImageModel
from PIL import Image

from hub.errors import InvalidRequest, NothingMade, ProviderBusy, ProviderFailed, ProviderKeyRefused
from hub.manifest import RemoteManifest
from hub.registry import read_manifest
from hub.remote.sizes import nearest_size
from hub.types import Event, Preview, Size
from tests.providers.asking import ask, half, picture
from tests.providers.protocols import protocol
from tests.providers.upstream import KEY, Upstream, raw, serving

READY_MADE = sorted((Path(__file__).parents[2] / "models" / "remote").glob("openai-*.toml"))
RETIRED = {"gpt-image-1", "dall-e-2", "dall-e-3"}
SQUARE = Size(1024, 1024)


@pytest.fixture
def openai() -> Iterator[Upstream]:
    with serving(protocol("openai")) as upstream:
        yield upstream
        assert not upstream.failures


def ready_made(path: Path, upstream: Upstream) -> RemoteManifest:
    manifest = read_manifest(path, None)
    assert isinstance(manifest, RemoteManifest)
    manifest.remote.base_url, manifest.remote.credentials = upstream.url, "test"
    return manifest


def body_of(upstream: Upstream, **wishes: Any) -> dict[str, Any]:
    """What a request adds to model, prompt and n."""
    ask(upstream, **wishes)
    body = upstream.work[-1].json
    assert (body.pop("model"), body.pop("prompt"), body.pop("n")) == ("gpt-image-2.5-flare", "a red fox", 1)
    return body


@pytest.mark.parametrize(
    ("wish", "sent"),
    [
        ({}, {}),
        ({"size": Size(1536, 864)}, {"size": "1536x864"}),
        ({"quality": "auto"}, {}),
        ({"quality": "low"}, {"quality": "low"}),
        ({"quality": "standard"}, {"quality": "medium"}),
        ({"quality": "hd"}, {"quality": "high"}),
        ({"quality": "xhigh"}, {"quality": "xhigh"}),
        ({"quality": "max"}, {"quality": "max"}),
        ({"output_format": "webp"}, {"output_format": "webp", "output_compression": 100}),
        (
            {"output_format": "jpeg", "output_compression": 40},
            {"output_format": "jpeg", "output_compression": 40},
        ),
        ({"output_compression": 40}, {}),
        ({"background": "auto"}, {}),
        ({"background": "opaque"}, {"background": "opaque"}),
        ({"background": "transparent"}, {"background": "transparent"}),
        ({"moderation": "low"}, {"moderation": "low"}),
        ({"user": "u-1", "safety_identifier": "s-1"}, {"user": "u-1", "safety_identifier": "s-1"}),
        ({"partial_images": 3}, {"stream": True, "partial_images": 3}),
    ],
)
def test_each_parameter_is_sent_as_openai_has_it(openai: Upstream, wish: dict[str, Any], sent: dict[str, Any]) -> None:
    assert body_of(openai, **wish) == sent


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"seed": 5}, "seed"),
        ({"style": "vivid"}, "style"),
        ({"num_inference_steps": 5}, "num_inference_steps"),
        ({"negative_prompt": "rain"}, "negative_prompt"),
        ({"input_fidelity": "high", "images": (picture(),)}, "input_fidelity"),
        ({"moderation": "low", "images": (picture(),)}, "moderation"),
    ],
)
def test_what_it_does_not_have_is_warned_about_and_refused_if_strict(
    openai: Upstream, wish: dict[str, Any], param: str
) -> None:
    (warning,) = ask(openai, **wish).warnings
    assert warning.startswith(f"{param}: ")
    asked = len(openai.asked)
    with pytest.raises(InvalidRequest) as refused:
        ask(openai, strict=True, **wish)
    assert refused.value.param == param
    assert len(openai.asked) == asked


def test_an_edit_is_a_form_with_the_pictures_as_they_came_and_a_mask_that_all_understand(openai: Upstream) -> None:
    sources = (picture(colour="red"), picture(32, 48, colour="blue"))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    ask(openai, images=sources, mask=_png(mask), size=SQUARE, quality="low")
    sent = openai.work[-1]
    assert sent.path == "/images/edits"
    assert [part.data for part in sent.parts if part.name == "image[]"] == list(sources)
    assert sent.fields == {
        "model": "gpt-image-2.5-flare",
        "prompt": "a red fox",
        "n": "1",
        "size": "1024x1024",
        "quality": "low",
    }
    (part,) = [part for part in sent.parts if part.name == "mask"]
    with Image.open(io.BytesIO(part.data)) as sent_mask:
        assert sent_mask.size == (64, 64)
        assert sent_mask.getpixel((10, 10)) == (255, 255, 255, 0)  # changes: transparent, and white
        assert sent_mask.getpixel((50, 10)) == (0, 0, 0, 255)


def test_an_edit_s_form_has_the_parts_that_openai_s_own_client_sends(openai: Upstream) -> None:
    def shape() -> list[tuple[str, bool]]:
        return sorted((part.name, part.filename is not None) for part in openai.work[-1].parts)

    for count in (1, 3):
        sources = [picture(colour=colour) for colour in ("red", "green", "blue")[:count]]
        with OpenAI(base_url=openai.url, api_key=KEY, max_retries=0) as client:
            files = [("image.png", each, "image/png") for each in sources]
            client.images.edit(
                model="gpt-image-2.5-flare",
                prompt="a red fox",
                image=files if count > 1 else files[0],
                mask=("mask.png", picture(), "image/png"),
                n=1,
                size="1024x1024",
                quality="xhigh",
            )
        theirs = shape()
        ask(openai, images=tuple(sources), mask=picture(), size=SQUARE, quality="xhigh")
        assert shape() == theirs


def test_pictures_are_kept_byte_for_byte_and_their_base64_as_it_came(openai: Upstream) -> None:
    result = ask(openai, n=10, size=SQUARE)
    assert len(set(result.images)) == 10
    assert [base64.b64decode(text) for text in result.encoded] == list(result.images)
    assert len(openai.work) == 1
    assert result.usage is not None
    assert (result.usage.text_tokens, result.usage.image_tokens, result.usage.output_tokens) == (10, 7, 1056)
    assert (result.quality, result.background, result.warnings) == ("high", "opaque", ())


def test_base64_with_escapes_is_read_and_unknown_fields_are_not_minded(openai: Upstream) -> None:
    data = picture(256, 256)
    text = base64.b64encode(data + bytes(range(256)) * 12)  # what stands behind the end of a PNG is kept, too
    assert b"/" in text
    answer = b'{"new":{"a":[1]},"created":"soon","data":[{"new":null,"b64_json":"%s"}],"svg_usage":3}'
    openai.faults.append(raw(answer % text.replace(b"/", b"\\/")))
    assert ask(openai).images == (base64.b64decode(text),)


def test_a_link_is_followed_where_an_answer_has_one(openai: Upstream) -> None:
    openai.faults.append(raw(json.dumps({"created": 1, "data": [{"url": openai.link(64, 64)}]}).encode()))
    result = ask(openai)
    assert result.images == tuple(openai.pictures.values())
    assert result.encoded == ()


@pytest.mark.parametrize("edits", [False, True])
def test_a_stream_tells_previews_before_the_pictures_one_call_for_each_picture(openai: Upstream, edits: bool) -> None:
    events: list[Event] = []
    sources = (picture(),) if edits else ()
    result = ask(openai, events=events, images=sources, partial_images=2, n=2, size=SQUARE)
    assert len(result.images) == 2
    assert sorted((event.index, event.partial) for event in events if isinstance(event, Preview)) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert len(openai.work) == 2  # OpenAI streams one picture at a time
    assert result.usage is not None
    assert result.usage.output_tokens == 2 * 1056


def error_of(code: str | None, kind: str = "invalid_request_error", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": f"secret words {KEY}", "type": kind, "param": param, "code": code}}


@pytest.mark.parametrize(
    ("status", "body", "error", "code"),
    [
        (
            400,
            error_of("moderation_blocked", "image_generation_user_error"),
            InvalidRequest,
            "content_policy_violation",
        ),
        (400, error_of("content_policy_violation"), InvalidRequest, "content_policy_violation"),
        (429, error_of("insufficient_quota", "insufficient_quota"), ProviderKeyRefused, "provider_key_refused"),
        (400, error_of("billing_hard_limit_reached"), ProviderKeyRefused, "provider_key_refused"),
        (401, error_of("invalid_api_key"), ProviderKeyRefused, "provider_key_refused"),
        (403, error_of(None), ProviderKeyRefused, "provider_key_refused"),
        (400, error_of("invalid_value", param="size"), InvalidRequest, "provider_refused"),
        (400, error_of("unknown_parameter", param="tools[0].secret"), InvalidRequest, "provider_refused"),
        (404, error_of("model_not_found", param="model"), NothingMade, "provider_failed"),
        (500, error_of(None, "server_error"), ProviderFailed, "provider_failed"),
        (429, error_of("rate_limit_exceeded", "requests"), ProviderBusy, "provider_busy"),
    ],
)
def test_errors_are_told_by_their_codes_and_never_in_openai_s_words(
    openai: Upstream, status: int, body: dict[str, Any], error: type[Exception], code: str
) -> None:
    openai.faults.extend([raw(json.dumps(body).encode(), status, **{"Retry-After": "60"})] * 3)
    with pytest.raises(error) as raised:
        ask(openai)
    failure: Any = raised.value
    assert failure.code == code
    assert "secret" not in failure.message
    assert KEY not in failure.message
    assert failure.param in (None, "size", "prompt")
    assert len(openai.work) == 1  # nothing was worth a second try: there is one key, and the wait is long
    if isinstance(failure, ProviderBusy):
        assert failure.retry_after == 60


@pytest.mark.parametrize(
    ("data", "error", "code", "billed"),
    [
        (error_of("moderation_blocked"), InvalidRequest, "content_policy_violation", False),
        (error_of("rate_limit_exceeded", "rate_limit_error"), ProviderBusy, "provider_busy", False),
        (error_of("insufficient_quota"), ProviderKeyRefused, "provider_key_refused", False),
        (error_of("invalid_value", param="size"), InvalidRequest, "provider_refused", False),
        (error_of(None, "server_error"), ProviderFailed, "provider_failed", True),
        ({"type": "error", **error_of(None, "image_generation_server_error")}, ProviderFailed, "provider_failed", True),
    ],
)
def test_errors_in_a_stream_are_told_like_those_with_a_status(
    openai: Upstream, data: dict[str, Any], error: type[Exception], code: str, billed: bool
) -> None:
    events = f"event: error\ndata: {json.dumps(data)}\n\n".encode()
    openai.faults.extend([raw(events, content_type="text/event-stream")] * 3)
    with pytest.raises(error) as raised:
        ask(openai, partial_images=1)
    failure: Any = raised.value
    assert (failure.code, getattr(failure, "may_have_billed", False)) == (code, billed)
    assert "secret" not in failure.message


def test_a_busy_moment_in_a_stream_is_waited_for(openai: Upstream) -> None:
    events = f"event: error\ndata: {json.dumps(error_of('rate_limit_exceeded'))}\n\n".encode()
    openai.faults.append(raw(events, content_type="text/event-stream"))
    assert len(ask(openai, partial_images=1, size=SQUARE).images) == 1
    assert len(openai.work) == 2


def test_a_stream_that_ends_without_a_picture_is_a_failure_that_may_have_been_billed(openai: Upstream) -> None:
    openai.faults.append(raw(b": nothing\n\n", content_type="text/event-stream"))
    with pytest.raises(ProviderFailed) as raised:
        ask(openai, partial_images=1)
    assert raised.value.may_have_billed


def test_a_jpeg_cannot_be_transparent_which_is_told_before_anything_is_sent(openai: Upstream) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ask(openai, background="transparent", output_format="jpeg")
    assert refused.value.param == "background"
    assert not openai.asked


def test_fields_of_the_manifest_s_options_are_added(openai: Upstream) -> None:
    ask(openai, remote={"options": {"complexity": "high"}})
    assert openai.work[-1].json["complexity"] == "high"


def test_there_is_a_manifest_for_every_model_that_the_sdk_names() -> None:
    there = {read_manifest(path, None).remote.model for path in READY_MADE}
    named = {name for name in get_args(ImageModel) if not name.endswith("-2026-09-08")}
    assert there == named - RETIRED


@pytest.mark.parametrize("path", READY_MADE, ids=lambda path: path.stem)
def test_nothing_reaches_openai_that_the_model_does_not_take(path: Path, openai: Upstream) -> None:
    manifest = ready_made(path, openai)
    assert manifest.id == f"openai/{manifest.remote.model}"
    assert path.stem == manifest.id.replace("/", "-")
    assert manifest.prices.is_free or manifest.prices.as_of is not None
    wishes: list[dict[str, Any]] = [
        *({"size": size} for size in (Size(256, 256), Size(1792, 1024), Size(3840, 2160), Size(40, 4000))),
        *({"quality": quality} for quality in ("low", "hd", "xhigh", "max")),
        *({"images": (picture(),), "input_fidelity": fidelity} for fidelity in ("low", "high")),
        {"images": (picture(),) * 16, "mask": picture(), "moderation": "low"},
        {"background": "transparent", "output_format": "webp", "output_compression": 30, "moderation": "low"},
        {"n": 10, "style": "vivid", "seed": 1},
        {"n": 2, "partial_images": 3},
    ]
    for wish in wishes:
        result = ask(openai, manifest=manifest, **wish)
        assert len(result.images) == wish.get("n", 1)
    with pytest.raises(InvalidRequest):
        ask(openai, manifest=manifest, images=(picture(),) * 17)


@pytest.mark.parametrize(
    ("model", "quality", "sent"),
    [("gpt-image-1.5", "xhigh", "high"), ("gpt-image-2", "max", "high"), ("gpt-image-2.5-sunburst", "max", "max")],
)
def test_a_finer_quality_is_sent_where_the_model_has_it_and_else_told(
    openai: Upstream, model: str, quality: Any, sent: str
) -> None:
    result = ask(openai, remote={"model": model}, quality=quality)
    assert openai.work[-1].json["quality"] == sent
    assert [warning.partition(":")[0] for warning in result.warnings] == ([] if sent == quality else ["quality"])


@pytest.mark.parametrize(
    ("model", "fidelity"), [("gpt-image-1.5", "high"), ("gpt-image-1-mini", None), ("gpt-image-2", None)]
)
def test_input_fidelity_is_sent_where_the_model_lets_one_choose(
    openai: Upstream, model: str, fidelity: str | None
) -> None:
    result = ask(openai, remote={"model": model}, images=(picture(),), input_fidelity="high")
    assert openai.work[-1].fields.get("input_fidelity") == fidelity
    assert bool(result.warnings) is (fidelity is None)


def test_every_size_between_the_bounds_is_asked_for_as_it_is_and_every_other_one_within_them() -> None:
    (path,) = [path for path in READY_MADE if path.stem == "openai-gpt-image-2"]
    manifest = read_manifest(path, None)
    assert isinstance(manifest, RemoteManifest)
    sides = [16, 100, 467, 480, 640, 816, 1024, 1408, 1600, 2160, 2880, 3000, 3840, 8000]
    for width, height in itertools.product(sides, sides):
        asked = Size(width, height)
        found = nearest_size(asked, [], manifest.remote.shapes)
        assert protocol("openai").draws(str(found), 2.0), (asked, found)  # type: ignore[attr-defined]
        if protocol("openai").draws(str(asked), 2.0):  # type: ignore[attr-defined]
            assert found == asked


def test_what_a_picture_takes_is_known_for_every_size_that_older_models_have() -> None:
    for path in READY_MADE:
        manifest = read_manifest(path, None)
        assert isinstance(manifest, RemoteManifest)
        tokens = manifest.prices.tokens
        if tokens is None or not tokens.output_tokens:
            continue
        for size, quality in itertools.product(manifest.remote.sizes, ("low", "medium", "high")):
            assert tokens.output_tokens[f"{quality}/{size}"] > 0


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_an_opaque_file_is_not_told_as_a_transparent_one(openai: Upstream) -> None:
    made = ask(openai, background="transparent")
    assert made.background == "opaque"
    assert made.warnings == ("background: OpenAI made a picture that is opaque",)
    openai.spoil = lambda _: half(1024, 1024, left=0)
    made = ask(openai, background="transparent")
    assert (made.background, made.warnings) == ("transparent", ())
