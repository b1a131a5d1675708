"""The local provider: fills in a manifest's defaults, plans sizes and sources, and lets the engine run the pipeline."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import msgspec

from hub.engine.protocol import WornLora
from hub.engine.supervisor import Engine
from hub.errors import InvalidRequest
from hub.loras import Loras
from hub.manifest import ModelManifest
from hub.providers.local.plan import engine_model, prepare
from hub.types import EFFORTS, Accepted, ImageRequest, ImageResult, OnEvent

log = logging.getLogger(__name__)

DECODERS = 2


class LocalProvider:
    """Runs manifests with `provider = "local"` on this machine's engine."""

    def __init__(self, engine: Engine, loras: Loras, *, receipts: bool = True) -> None:
        """`receipts`: write into each PNG what it follows from."""
        self._engine = engine
        self._loras = loras
        self._receipts = receipts
        # Of their own, and few: big source pictures must not crowd out the files that other requests read and write.
        self._decoders = ThreadPoolExecutor(DECODERS, "decoder")

    async def generate(
        self, manifest: ModelManifest, request: ImageRequest, on_event: OnEvent | None = None
    ) -> ImageResult:
        """Makes the pictures. `on_event` hears of their life, on the event loop. Raises HubError."""
        if request.images:
            loop = asyncio.get_running_loop()
            job, notices, sources, understood = await loop.run_in_executor(self._decoders, prepare, manifest, request)
        else:
            job, notices, sources, understood = prepare(manifest, request)
        if request.loras:
            worn = await asyncio.to_thread(self._worn, request)
            job = msgspec.structs.replace(job, loras=worn)
        quality = EFFORTS[request.quality or "auto"]
        try:
            if on_event:
                on_event(Accepted(size=job.output, quality=quality, output_format=job.output_format))
        except Exception:
            log.exception("an event callback failed")
            on_event = None
        finished = await self._engine.generate(msgspec.structs.replace(job, receipt=self._receipts), on_event)
        warnings = tuple(str(notice) for notice in (*notices, *finished.notices))
        return ImageResult(
            images=tuple(finished.images),
            seed=job.seeds[0],
            size=job.output,
            quality=quality,
            sources=sources,
            warnings=warnings,
            revised_prompts=(understood,) * len(finished.images) if understood else (),
            device_seconds=finished.device_seconds,
        )

    async def load(self, manifest: ModelManifest, *, pinned: bool | None) -> None:
        """Has the model in memory; see `Engine.load`."""
        await self._engine.load(engine_model(manifest), pinned=pinned)

    def _worn(self, request: ImageRequest) -> list[WornLora]:
        """The files of a request's LoRAs, as they were when it came. Raises InvalidRequest."""
        files = self._loras.find(request.loras)
        for file, identity in zip(files, request.lora_identities, strict=False):
            if file.identity != identity:
                words = f"loras: the LoRA '{file.name}' has changed on the disk since it was asked for; ask again."
                raise InvalidRequest(words, param="loras")
        return [WornLora(file, lora.weight) for file, lora in zip(files, request.loras, strict=True)]
