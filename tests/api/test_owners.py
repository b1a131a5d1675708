"""Whose request it is goes with it to the worker, where those of several keys take turns (tests/engine/test_policy)."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from hub.app import create_app
from hub.engine.protocol import Finished, Generate
from hub.hub import Hub
from hub.settings import Settings
from tests.api.conftest import as_file

PICTURE = as_file(Image.new("RGB", (128, 128), "red"))


@pytest.mark.parametrize("path", ["/v1/images/generations", "/api/v2/image"])
@pytest.mark.parametrize("keys", [{"alice": "sk-alice", "bob": "sk-bob"}, {}], ids=["keys", "none"])
def test_the_worker_is_told_whose_request_it_is(tmp_path: Path, path: str, keys: dict[str, str]) -> None:
    """Else all requests would be one owner's, and ten pictures of one key would go before one of another."""
    app = create_app(Settings(cache_dir=tmp_path, api_keys=keys))
    hub: Hub = app.state.hub
    frames: list[Generate] = []

    async def drawn(frame: Generate, on_event: Any) -> Finished:
        frames.append(frame)
        return Finished(id=frame.id, images=[PICTURE], notices=[])

    async def main() -> None:
        transport = httpx2.ASGITransport(app, client=("127.0.0.1", 5))
        async with hub.running(), httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            for key in keys.values() or [""]:
                sent = {"prompt": "a circle"} if path.startswith("/v1") else {"input": {"prompt": "a circle"}}
                answer = await client.post(path, json=sent, headers={"Authorization": f"Bearer {key}"} if key else {})
                assert answer.status_code == 200, answer.text

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hub.engine, "running", contextlib.nullcontext)
        patched.setattr(hub.engine, "generate", drawn)
        asyncio.run(main())
    assert [frame.owner for frame in frames] == (list(keys) or [""])
