"""Sources of images. A provider is one file here; a manifest names it by `provider = "…"`.

A provider maps an `ImageRequest` and a manifest to an `ImageResult`. It knows nothing of HTTP answers, files or keys.
"""

from __future__ import annotations

from typing import Protocol

from hub.manifest import ModelManifest
from hub.types import ImageRequest, ImageResult, OnEvent


class Provider(Protocol):
    """What every source of images can do."""

    async def generate(
        self, manifest: ModelManifest, request: ImageRequest, on_event: OnEvent | None = None
    ) -> ImageResult:
        """Makes the pictures, n of them, each exactly of the size and format asked for. Raises HubError.

        `on_event` hears of Accepted once the request was checked, then of its Progress and Previews.

        Cancelling the call stops the work. What could not be honoured stands in the result's `warnings`, or is an
        InvalidRequest where the request is strict.
        """
        ...
