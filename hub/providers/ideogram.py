"""Ideogram: one request waits for its pictures, which are behind links for some time.

Models named `ideogram-v3` and `ideogram-v4` speak version 1 of its API: forms, with a path for each task. Later ones
(`ideogram-4-5`) speak version 2: one path, JSON for words alone and a form where pictures come along. In masks black
may change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from hub.errors import HubError
from hub.manifest import RemoteManifest
from hub.remote.adapter import Adapter, Answer, Call, Form, Link, Made, Pending, blocked
from hub.remote.reading import seed, text
from hub.remote.wish import Notice, Wish
from hub.types import Effort, Task

MAX_SEED = 2**31 - 1
SPEEDS: dict[Effort, str] = {"low": "TURBO", "medium": "DEFAULT", "high": "QUALITY"}
PATHS: dict[Task, str] = {"text-to-image": "generate", "image-to-image": "remix", "inpainting": "inpaint"}


class Item(Struct):
    """A picture, or that it is withheld."""

    url: str | None = None
    prompt: Any = None
    is_image_safe: Any = True
    seed: Any = None


class Images(Struct):
    """The answer."""

    data: list[Item]


class Ideogram(Adapter):
    """api.ideogram.ai."""

    name = "ideogram"
    title = "Ideogram"
    base_url = "https://api.ideogram.ai"
    key_variable = "IDEOGRAM_API_KEY"
    honours = frozenset({"size", "quality", "seed"})
    documentation = "https://developer.ideogram.ai"

    def honoured(self, manifest: RemoteManifest) -> frozenset[str]:
        """Of version 1, Remix takes a strength; Ideogram 3 is told the most, and Ideogram 4 takes no seed."""
        model = manifest.remote.model
        if model.startswith("ideogram-v3"):
            return self.honours | {"negative_prompt", "strength"}
        return frozenset({"size", "quality", "strength"}) if model.startswith("ideogram-v4") else self.honours

    def unmet(self, wish: Wish) -> Sequence[Notice]:
        """With a mask, a picture has the size of its source, and version 1 takes no more than words and numbers."""
        if wish.mask is None:
            return ()
        return (
            wish.left_out("size", "negative_prompt", "strength") if _speaks_version_1(wish) else wish.left_out("size")
        )

    def headers(self, key: str) -> Mapping[str, str]:
        """A header of its own."""
        return {"Api-Key": key}

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """By the version of the API that the model speaks."""
        first_version = _speaks_version_1(wish)
        own = wish.seed(first, MAX_SEED) if "seed" in self.honoured(wish.manifest) else None
        numbers = {"seed": own, "num_images": n if n > 1 else None}
        field = "image" if first_version else "images"
        files = [(field, each.file_name, each.data, each.media_type) for each in wish.images]
        if wish.mask is not None:
            files.append(("mask", "mask.png", wish.mask.black_changes, "image/png"))
        if first_version:
            return Call(f"/v1/{wish.model}/{PATHS[wish.request.task]}", form=Form.of(_version_1(wish, numbers), files))
        body = _version_2(wish, numbers)
        path = f"/v2/image/generate/{wish.model}"
        return Call(path, form=Form.of(body, files)) if files else Call(path, json=body)

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """Pictures that are not safe by its own check are withheld."""
        items = answer.read(Images).data
        good = [item for item in items if item.is_image_safe is not False and item.url]
        if items and not good:
            raise blocked(self.title)
        prompts = [text(item.prompt) if item.prompt != wish.prompt else "" for item in good]
        return Made(
            [Link(str(item.url)) for item in good],
            seed=seed(good[0].seed) if good else None,
            revised_prompts=prompts if any(prompts) else [],
        )

    def refusal(self, answer: Answer) -> HubError:
        """422 is its content policy, and nothing else."""
        return blocked(self.title) if answer.status == 422 else super().refusal(answer)


def _speaks_version_1(wish: Wish) -> bool:
    return wish.model.startswith("ideogram-v")


def _version_1(wish: Wish, numbers: Mapping[str, object]) -> dict[str, object]:
    request, inpaints = wish.request, wish.mask is not None
    strength = request.strength if wish.images and not inpaints else None
    return wish.with_options(
        {
            "text_prompt" if wish.model.startswith("ideogram-v4") else "prompt": wish.prompt,
            "resolution": str(wish.size) if wish.size is not None and not inpaints else None,
            "rendering_speed": SPEEDS[wish.effort] if wish.effort is not None else None,
            "negative_prompt": request.negative_prompt if not inpaints else None,
            "image_weight": None if strength is None else min(100, max(1, round(100 * (1 - strength)))),
            **numbers,
        }
    )


def _version_2(wish: Wish, numbers: Mapping[str, object]) -> dict[str, object]:
    """An edit without a size is as large as its source; with a mask it always is."""
    size = str(wish.size) if wish.size is not None else "source" if wish.images else None
    return wish.with_options(
        {
            "prompt": wish.prompt,
            "size": size if wish.mask is None else None,
            "quality": wish.effort,
            **numbers,
        }
    )


adapter = Ideogram()
