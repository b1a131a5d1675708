"""What a remote manifest must not say."""

from __future__ import annotations

from typing import Any

import pytest

from hub.manifest import RemoteManifest
from tests.providers.running import manifest_of

OWN = [
    *("prompt", "text_prompt", "contents", "model", "n", "num_images", "number_of_images", "max_images"),
    *("image", "image[]", "images", "image_url", "image_urls", "input_image", "input_image_2", "reference_images"),
    *("input_references", "mask", "sequential_image_generation_options", "Prompt"),
]


@pytest.mark.parametrize("name", OWN)
def test_options_do_not_replace_what_is_the_requests_own(name: str) -> None:
    with pytest.raises(ValueError, match=r"remote\.options") as caught:
        manifest_of("openai_compatible", base_url="http://127.0.0.1:9", options={name: 1, "steps": 4})
    assert f"cannot say {name}:" in str(caught.value)


@pytest.mark.parametrize(
    ("provider", "remote", "name"),
    [
        ("replicate", {"fields": {"prompt": "text"}, "options": {"text": "x"}}, "text"),
        ("fal", {"fields": {"image": "photos[]"}, "options": {"photos": []}}, "photos"),
        ("google", {"options": {"generationConfig": {"candidateCount": 4}}}, "generationConfig.candidateCount"),
    ],
)
def test_nor_by_the_names_that_the_model_has_for_it(provider: str, remote: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        manifest_of(provider, **remote)


def test_all_else_may_be_replaced_on_purpose() -> None:
    options = {"stream": False, "response_format": "url", "seed": 4, "input_fidelity": "high", "image_size": "4K"}
    manifest: RemoteManifest = manifest_of("openai", options=options)
    assert manifest.remote.options == options
