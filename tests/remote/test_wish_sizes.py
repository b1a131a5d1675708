"""Which size a remote model is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.manifest import RemoteDefaults, RemoteManifest, RemoteSection, ShapesSection
from hub.remote.sizes import nearest_size
from hub.remote.wish import plan
from hub.types import ImageRequest, Size
from tests.providers.ready_made import READY_MADE, picture, ready_made

SHAPES = {
    path.stem: ready_made(path.stem).remote.shapes
    for path in sorted(READY_MADE.glob("*.toml"))
    if ready_made(path.stem).remote.shapes is not None
}
SIDES = st.integers(16, 4096)


@pytest.mark.parametrize("file", SHAPES)
@given(width=SIDES, height=SIDES)
def test_every_size_becomes_one_that_the_model_draws(file: str, width: int, height: int) -> None:
    shapes = SHAPES[file]
    assert isinstance(shapes, ShapesSection)
    size = nearest_size(Size(width, height), [], shapes)
    for side in (size.width, size.height):
        assert shapes.min <= side <= shapes.max
        assert side % shapes.multiple == 0
    assert (shapes.min_pixels or 0) <= size.width * size.height <= (shapes.max_pixels or 1 << 60)


def planned(images: tuple[bytes, ...] = (), **request: Any) -> Size | None:
    manifest = RemoteManifest(
        id="x/painter",
        name="",
        description="",
        provider="openai",
        tasks=["text-to-image", "image-to-image"],
        remote=RemoteSection(model="painter"),
        defaults=RemoteDefaults(size="512x256"),
    )
    return plan(manifest, {"size"}, ImageRequest(prompt="a cat", images=images, **request)).size


def test_the_manifests_size_is_for_drawings_and_an_edit_keeps_its_sources() -> None:
    assert planned() == Size(512, 256)
    assert planned((picture(),)) is None
    assert planned((picture(),), size=Size(64, 64)) == Size(64, 64)
