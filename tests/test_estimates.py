"""An estimate is reserved, so it is never less than what the request costs, as far as the price tables are right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from hub import prices
from hub.ledger import estimate
from hub.manifest import ModelManifest, PricesSection, RemoteManifest, TokenPrices, parse_size
from hub.providers import adapter
from hub.registry import read_manifest
from hub.remote.result import shares
from hub.remote.wish import Wish, plan
from hub.types import Effort, ImageRequest, ImageResult, Quality, Size, Usage
from hub.usage import count_usage
from tests.conftest import ROOT
from tests.providers.ready_made import READY_MADE, mask, picture

EFFORTS: tuple[Effort, ...] = ("low", "medium", "high")
SIZES = (None, Size(512, 512), Size(1536, 1024), Size(2048, 2048))
QUALITIES: tuple[Quality | None, ...] = (None, "low", "hd")
SOURCE = picture()
SOURCES: dict[str, dict[str, Any]] = {
    "text-to-image": {},
    "image-to-image": {"images": (SOURCE, SOURCE)},
    "inpainting": {"images": (SOURCE,), "mask": mask()},
}


def wishes(manifest: RemoteManifest) -> Iterator[tuple[ImageRequest, Wish]]:
    honoured = adapter(manifest.provider).honoured(manifest)
    for task in manifest.tasks:
        sources = dict(SOURCES[task])
        if manifest.remote.max_images == 1 and "images" in sources:
            sources["images"] = sources["images"][:1]
        for n, partial, size, quality in itertools.product((1, 3), (0, 2), SIZES, QUALITIES):
            request = ImageRequest(
                prompt="a cat in a hat", n=n, partial_images=partial, size=size, quality=quality, **sources
            )
            yield request, plan(manifest, honoured, request)


def drawn(manifest: RemoteManifest, wish: Wish) -> Iterator[tuple[Size, Effort]]:
    """What may come of a wish: where the provider chooses, anything that its manifest says."""
    remote = manifest.remote
    sizes = [wish.size] if wish.size else [parse_size(each) for each in remote.sizes] or [Size(1280, 960)]
    tokens = manifest.prices.tokens
    if wish.size is None and not remote.sizes and (remote.shapes is None or (tokens and not tokens.output_tokens)):
        sizes = [Size(1024, 1024)]  # nobody knows
    yield from itertools.product(sizes, [wish.effort] if wish.effort else EFFORTS)


def metered(manifest: RemoteManifest, request: ImageRequest, size: Size, effort: Effort) -> Usage:
    """As a provider counts that is told the prompt and the sources with every call."""
    table = manifest.prices.tokens
    assert table is not None
    calls = len(shares(request.n, adapter(manifest.provider).most(manifest, request)))
    text = count_usage(request.prompt, (), size, 0).text_tokens
    each = count_usage("", (), size, 1).output_tokens
    if table.output_tokens:
        keys = (f"{effort}/{size}", f"{effort}/*", f"*/{size}", "*/*")
        each = next((table.output_tokens[key] for key in keys if key in table.output_tokens), 0)
    sources = len(request.images) + (request.mask is not None)
    return Usage(
        text_tokens=calls * text,
        image_tokens=calls * sources * 1300,
        output_tokens=request.n * each + request.n * request.partial_images * 100,
    )


@pytest.mark.parametrize("name", [path.stem for path in sorted(READY_MADE.glob("*.toml"))])
def test_no_ready_made_model_costs_more_than_was_reserved(name: str) -> None:
    manifest = read_manifest(READY_MADE / f"{name}.toml")
    assert isinstance(manifest, RemoteManifest)
    for request, wish in wishes(manifest):
        expected = estimate(manifest, request)
        if manifest.prices.is_free:
            assert expected is None
            continue
        assert expected is not None
        for size, effort in drawn(manifest, wish):
            usage = metered(manifest, request, size, effort) if manifest.prices.tokens else None
            made = ImageResult(images=(b"",) * request.n, seed=None, size=size, quality=effort, usage=usage)
            actual = prices.cost(manifest.prices, made)
            assert actual is not None and actual <= expected + 1e-9, (request, size, effort)


def test_what_a_provider_does_not_heed_does_not_make_it_cheaper() -> None:
    """Quality, of a model that takes none; previews, for which OpenAI sends a prompt and its sources again."""
    manifest = read_manifest(READY_MADE / "together-flux-2-pro.toml")
    assert isinstance(manifest, RemoteManifest)
    assert "quality" not in adapter("together").honoured(manifest)
    manifest.prices = PricesSection(images={"low/*": 0.01, "high/*": 0.1})
    assert estimate(manifest, ImageRequest(prompt="x", quality="low")) == 0.1
    manifest = read_manifest(READY_MADE / "openai-gpt-image-2.toml")
    assert isinstance(manifest, RemoteManifest)
    manifest.prices = PricesSection(tokens=TokenPrices(image=10.0, output=1e-9))
    edit = ImageRequest(prompt="x", n=4, images=(b"",))
    whole, streamed = estimate(manifest, edit), estimate(manifest, msgspec.structs.replace(edit, partial_images=1))
    assert whole is not None and streamed == pytest.approx(4 * whole)


def test_an_edit_without_a_size_may_come_in_the_dearest() -> None:
    manifest = read_manifest(READY_MADE / "black-forest-labs-flux-2-flex.toml")
    assert isinstance(manifest, RemoteManifest) and manifest.defaults.size == "1024x1024"
    edit = ImageRequest(prompt="x", images=(b"",))
    assert estimate(manifest, edit) == 4 * 0.05, "four megapixels"
    assert estimate(manifest, msgspec.structs.replace(edit, size=Size(1024, 1024))) == 0.05


def test_a_local_model_draws_what_the_documentation_promises() -> None:
    manifest = read_manifest(ROOT / "models" / "builtin.toml")
    assert isinstance(manifest, ModelManifest)
    manifest.defaults.size = "512x512"
    manifest.prices = PricesSection(images={"*/512x512": 0.01, "*/1024x1024": 0.04, "*/*": 0.2})
    plain = ImageRequest(prompt="x")
    assert estimate(manifest, plain) == 0.01
    assert estimate(manifest, msgspec.structs.replace(plain, default_size=Size(1024, 1024))) == 0.04
    assert estimate(manifest, msgspec.structs.replace(plain, images=(b"",))) == 0.2, "as large as its source"
