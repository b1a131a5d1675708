"""No parameter of a request is left out in silence: each changes what the provider is sent, or is told by name. For
every provider's model of the tests, and for every ready-made one. Nothing is sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from hub import providers
from hub.errors import InvalidRequest
from hub.manifest import RemoteManifest
from hub.registry import read_manifest
from hub.remote.wish import OPTIONAL, SERVERS_OWN, noting, plan
from hub.types import ImageRequest, Lora, Size, Task
from tests.providers.protocols import protocol
from tests.providers.test_contract import READY_MADE, half, picture

VALUES: dict[str, tuple[Any, ...]] = {
    "size": (Size(1600, 900), Size(512, 768)),
    "quality": ("low", "high", "max"),
    "style": ("vivid",),
    "seed": (7,),
    "num_inference_steps": (20,),
    "guidance_scale": (5.5,),
    "negative_prompt": ("rain",),
    "strength": (0.5,),
    "scheduler": ("DDIMScheduler",),
    "loras": ((Lora(name="ink"),),),
    "output_format": ("jpeg", "webp"),
    "output_compression": (50,),
    "background": ("transparent",),
    "moderation": ("low",),
    "input_fidelity": ("high",),
    "partial_images": (2,),
}
"""Unlike what models do by themselves."""
TRIED = [(name, value) for name, values in VALUES.items() for value in values]
SOURCES: dict[Task, dict[str, Any]] = {
    "text-to-image": {},
    "image-to-image": {"images": (picture(),)},
    "inpainting": {"images": (picture(),), "mask": half("L")},
}


def manifests() -> list[RemoteManifest]:
    """One of each protocol, the same with all that a manifest can say that a model takes, and the ready-made ones."""
    plain = [protocol(name).manifest(SimpleNamespace(url="http://127.0.0.1:9")) for name in providers.names()]
    everything = [msgspec.convert(msgspec.to_builtins(each), RemoteManifest) for each in plain]
    for each in everything:
        each.id, each.remote.honours = f"{each.id}-of-all", [*OPTIONAL, *SERVERS_OWN]
    return [*plain, *everything, *(each for each in map(read_manifest, READY_MADE) if isinstance(each, RemoteManifest))]


MANIFESTS = manifests()


def can_choose_a_format(manifest: RemoteManifest) -> bool:
    return "output_format" in providers.adapter(manifest.provider).honoured(manifest)


def asked(manifest: RemoteManifest, **request: Any) -> tuple[tuple[Any, ...], set[str]]:
    """What is sent, and which parameters are told not to have been honoured."""
    adapter = providers.adapter(manifest.provider)
    wish = plan(manifest, adapter.honoured(manifest), ImageRequest(prompt="a fox", **request))
    wish = noting(wish, adapter.unmet(wish))
    call = adapter.call(wish, 1, 0)
    return (call.url, call.json, call.form, call.stream), {each.param for each in wish.notices}


@pytest.mark.parametrize("task", SOURCES)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda each: each.id)
def test_a_parameter_is_sent_or_told(manifest: RemoteManifest, task: Task) -> None:
    honoured = providers.adapter(manifest.provider).honoured(manifest)
    for name, value in TRIED if task in manifest.tasks else ():
        given = {**SOURCES[task], **({"output_format": "jpeg"} if name == "output_compression" else {})}
        before, _ = asked(manifest, **given)
        try:
            after, told = asked(manifest, **given, **{name: value})
        except InvalidRequest as error:
            assert error.param == name
            continue
        if name == "output_format" and name not in honoured:
            continue  # it is told afterwards, since some models make what was asked for by themselves
        assert name in told or (name in honoured and after != before), (name, value)


@pytest.mark.parametrize(
    "manifest", [each for each in MANIFESTS if not can_choose_a_format(each)], ids=lambda each: each.id
)
def test_a_format_that_cannot_be_asked_for_is_refused_where_the_request_is_strict(manifest: RemoteManifest) -> None:
    source = SOURCES[manifest.tasks[0]]
    for output_format in {"png", "jpeg", "webp"} - set(manifest.remote.formats):
        with pytest.raises(InvalidRequest) as caught:
            asked(manifest, output_format=output_format, strict=True, **source)
        assert caught.value.param == "output_format"


@pytest.mark.parametrize("name", ["user", "safety_identifier", "strict"])
def test_what_is_for_whom_it_concerns_is_sent_where_a_manifest_names_it(name: str) -> None:
    (manifest,) = (each for each in MANIFESTS if each.id == "openai_compatible/painter-of-all")
    value = True if name == "strict" else "somebody"
    assert asked(manifest, **{name: value})[0] != asked(manifest)[0]


def test_every_parameter_is_tried() -> None:
    assert set(VALUES) == set(OPTIONAL)
