from __future__ import annotations

from pathlib import Path

import pytest

from hub.errors import ModelNotFound
from hub.registry import open_registry
from hub.routing import Target, route
from tests.conftest import write_manifest


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model_index.json").write_text("{}")
    return write_manifest(tmp_path / "models", tmp_path / "weights", aliases='aliases = ["tiny"]')


def test_a_model_is_routed_to_its_manifests_provider_with_the_reason(models: Path) -> None:
    registry = open_registry([models], {})
    found = route("small", registry)
    assert found.targets == (Target(registry.get("small").manifest),)
    assert found.reason == "'small' is a model of this hub"


def test_an_alias_is_routed_to_the_model_behind_it_and_the_reason_says_so(models: Path) -> None:
    registry = open_registry([models], {"dall-e-3": "small"})
    for alias in ("tiny", "dall-e-3"):
        found = route(alias, registry)
        assert found.targets == route("small", registry).targets
        assert found.reason == f"'{alias}' is an alias of 'small'"


def test_an_unknown_model_has_no_route(models: Path) -> None:
    with pytest.raises(ModelNotFound):
        route("smal", open_registry([models], {}))
