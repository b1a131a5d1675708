"""What lists of models, and AIGNE's catalogue and status, say of remote models and routes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hub.app import create_app
from hub.settings import Settings

ROUTE = """
id = "either"
name = "Either"
description = ""
targets = [{ model = "openai/gpt-image-2" }, { model = "builtin" }]
"""
FILL = """
id = "lab/fill"
name = "Fill"
description = ""
provider = "openai_compatible"
tasks = ["inpainting"]
remote = { model = "fill", base_url = "http://127.0.0.1:9/v1" }
"""
KEYS = {"alice": "sk-alice-1234567890", "bob": "sk-bob-1234567890"}

Get = Callable[..., Any]


@pytest.fixture
def get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Get]:
    """Asks hubs of these settings, whose engine is not there, one question each."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "either.toml").write_text(ROUTE)
    (tmp_path / "models" / "fill.toml").write_text(FILL)

    def ask(path: str, key: str = "", *, provider_key: str = "sk-canary-3", **changes: Any) -> Any:
        monkeypatch.setenv("OPENAI_API_KEY", provider_key)
        defaults = {"remote_models": ["openai/gpt-image-*"], "remote_keys": ["*"], "models_dir": tmp_path / "models"}
        app = create_app(Settings(cache_dir=tmp_path / "cache", **{**defaults, **changes}))
        monkeypatch.setattr(app.state.hub.engine, "running", contextlib.nullcontext)

        async def main() -> Any:
            transport = httpx2.ASGITransport(app, client=("127.0.0.1", 5))
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            async with app.state.hub.running(), httpx2.AsyncClient(transport=transport) as client:
                answer = await client.get(f"http://127.0.0.1:8000{path}", headers=headers)
                assert answer.status_code == 200 and "canary" not in answer.text
                return answer.json()

        return asyncio.run(main())

    yield ask


def test_models_of_providers_and_routes_are_listed_beside_the_local_ones(get: Get) -> None:
    listed = {model["id"]: model for model in get("/v1/models", aliases={"x": "openai/gpt-image-2"})["data"]}
    assert listed["openai/gpt-image-2"]["owned_by"] == "openai"
    assert listed["x"]["root"] == "openai/gpt-image-2"
    assert listed["either"]["root"] == "either"
    assert listed["lab/fill"]["owned_by"] == "openai_compatible"
    assert "builtin" in listed and "fal/flux-2" not in listed
    assert get("/v1/models/openai/gpt-image-2")["id"] == "openai/gpt-image-2"


def available(catalogue: list[dict[str, Any]]) -> set[str]:
    return {each["model"] for each in catalogue if each["status"]["available"]} & {
        *("openai/gpt-image-2", "either", "lab/fill", "builtin"),
    }


def test_the_catalogue_says_of_each_model_whether_it_could_be_asked(get: Get) -> None:
    path = "/api/ai/models"
    assert available(get(path)) == {"openai/gpt-image-2", "either", "lab/fill"}
    assert available(get(path, provider_key="")) == {"lab/fill"}
    assert available(get(path, remote_keys=[])) == {"lab/fill"}
    assert available(get(path, offline=False, api_keys=KEYS, remote_keys=["bob"])) >= {"either"}


def test_the_status_of_a_model_is_that_for_the_key_that_asks(get: Get) -> None:
    path, keyed = "/api/v2/status?model=hub/openai/gpt-image-2", {"api_keys": KEYS, "remote_keys": ["bob"]}
    assert get(path, KEYS["bob"], **keyed) == {"available": True}
    refused = get(path, KEYS["alice"], **keyed)
    assert refused["available"] is False and "may not leave" in refused["error"]
    lacking = get(path, KEYS["bob"], provider_key="", **keyed)
    assert lacking["available"] is False and "key" in lacking["error"]
    assert get("/api/v2/status?model=lab/fill", KEYS["alice"], **keyed) == {"available": True}
    assert get("/api/v2/status", KEYS["bob"], **keyed)["available"] is False, "the default model is a local one"
