"""Hubs with routes, for tests: manifests, loopback providers, and a hub whose engine is a stand-in."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from hub.errors import HubError
from hub.hub import Hub
from hub.manifest import ModelManifest
from hub.settings import Settings
from hub.types import Accepted, ImageRequest, ImageResult, OnEvent, Progress, Size
from tests.conftest import write_manifest
from tests.providers.upstream import KEY

PNG = b"\x89PNG\r\n\x1a\n"


def write_remote(folder: Path, name: str, url: str, *, leaves: bool = True, price: float | None = 0.04) -> None:
    """A model of OpenAI's wire at a loopback address, of which the owner says that it is elsewhere."""
    prices = f'\n[prices.images]\n"*/*" = {price}\n' if price is not None else ""
    (folder / f"{name}.toml").write_text(
        f'id = "{name}"\nname = "{name}"\ndescription = ""\nprovider = "openai"\ntasks = ["text-to-image"]\n'
        f'[remote]\nmodel = "gpt-image-2.5-flare"\nbase_url = "{url}"\ncredentials = "{name}"\nmax_n = 10\n'
        f"leaves = {str(leaves).lower()}\ntimeout = 20\n{prices}"
    )


def write_route(folder: Path, *targets: str, name: str = "image", **fields: Any) -> None:
    """A route of these models, as listed unless the fields say otherwise. A target may bring lines of its own."""
    lines = {"order": "listed", **fields}
    told = "\n".join(f"{key} = {_toml(value)}" for key, value in lines.items())
    sections = ""
    for target in targets:
        model, _, more = target.partition("\n")
        sections += f'\n[[targets]]\nmodel = "{model}"\n{more}\n'
    (folder / f"{name}.toml").write_text(f'id = "{name}"\nname = "{name}"\ndescription = ""\n{told}\n{sections}')


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | int) else f'"{value}"'


def write_local(folder: Path, *, weights: bool = True) -> None:
    """The model `small`; there is nothing in its weights."""
    place = folder / "weights"
    place.mkdir(parents=True)
    if weights:
        (place / "model_index.json").write_text("{}")
    write_manifest(folder, place)


def write_credentials(folder: Path, *names: str) -> Path:
    """A file with the loopback providers' key, under the names of these models."""
    place = folder / "credentials.toml"
    place.write_text("".join(f'[{name}]\nkeys = ["{KEY}"]\n' for name in names))
    place.chmod(0o600)
    return place


class StandIn:
    """Draws instead of the engine: `draws` is called for each request."""

    def __init__(self) -> None:
        self.asked: list[ImageRequest] = []
        self.error: HubError | None = None
        self.before: Callable[[], None] = lambda: None

    async def generate(self, manifest: ModelManifest, request: ImageRequest, on_event: OnEvent | None) -> ImageResult:
        self.asked.append(request)
        if on_event is not None:
            on_event(Accepted(size=Size(64, 64), quality="low", output_format="png"))
            on_event(Progress(step=3, steps=6))
        self.before()
        if self.error is not None:
            raise self.error
        return ImageResult(images=(PNG,), seed=1, size=Size(64, 64), quality="low")


@contextlib.asynccontextmanager
async def hub_without_engine(settings: Settings) -> AsyncIterator[tuple[Hub, StandIn]]:
    """Everything but the workers."""
    hub = Hub(settings)
    drawing = StandIn()
    hub._local = drawing  # type: ignore[assignment]
    async with (
        hub.store.running(b"{}"),
        hub.ledger.running(),
        hub._transport.running(),
        hub.jobs.running(),
    ):
        yield hub, drawing
