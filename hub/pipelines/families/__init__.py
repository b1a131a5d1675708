"""Where a family of diffusers' pipelines differs from the usual: one file each, found by itself.

The API process reads them too, to prepare source pictures, and has no torch: they import nothing of the kind, but
for `components`, which the worker alone calls. A family is told from the class name in a folder's model_index.json.
Most need no file: `USUAL` is what Stable Diffusion, SDXL and whatever diffusers adds next have in common.
"""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from hub.pipelines.suggested import Found, Suggested
from hub.types import Task

Arguments = dict[str, Any]
Unused = dict[str, str]
Adapt = Callable[[Arguments], Unused]
Components = Callable[[str], dict[str, Any]]
Suggest = Callable[[Found], Suggested]
ALL_TASKS: tuple[Task, ...] = ("text-to-image", "image-to-image", "inpainting")


NO_GUIDANCE = {"negative_prompt": "it has no effect without guidance, which guidance_scale turns off here"}


def by_guidance(wanted: Arguments, *, off: float = 1, name: str = "guidance_scale") -> Unused:
    """Classifier-free guidance: without it there is nothing that a negative prompt could steer. `off`: the largest
    scale that means none."""
    scale = wanted.get(name)
    if wanted.get("negative_prompt") and scale is not None and scale <= off:
        del wanted["negative_prompt"]
        return NO_GUIDANCE
    return {}


class Family(Struct, frozen=True, kw_only=True):
    """How a family is called.

    `classes`: names of the pipelines that a model_index.json of this family may hold. `pipelines`: diffusers' class
    for each task; empty where diffusers' own auto mapping has them. `images`: what source pictures are: the one that
    is repainted (`source`), any that the model looks at (`reference`), or a map to draw along, after the source if
    there are two (`control`). `embedded_guidance`: guidance is an input of the denoiser where its config has
    `guidance_embeds`, and does nothing where it has not.

    `adapt` changes the usual arguments (`prompt`, `negative_prompt`, `guidance_scale`, `num_inference_steps`,
    `strength`, `width`, `height`, and the manifest's own) in place to what the pipelines take, and returns the
    parameters that it had to drop, with the reason. `components` gives those of a folder that diffusers could not
    load by itself (the worker alone calls it). `schedulers` are noise schedulers that suit beside those that the
    folder's own names as compatible.

    `tasks` are what the family does where `pipelines` does not tell. `suggest` says what the manifest of a folder that
    was found should hold: None for families of which nothing is known.
    """

    classes: tuple[str, ...] = ()
    pipelines: dict[Task, str] = {}
    images: Literal["source", "reference", "control"] = "source"
    max_images: int = 1
    embedded_guidance: bool = False
    adapt: Adapt = by_guidance
    components: Components = lambda folder: {}  # noqa: ARG005
    schedulers: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ()
    suggest: Suggest | None = None

    def place_images(self, task: Task, wanted: Arguments, accepted: frozenset[str]) -> None:
        """Turns `images` into the arguments that hold pictures. `accepted`: the names that the pipeline takes."""
        images = wanted.pop("images")
        if not images:
            return
        if self.images == "control" and len(images) > 1:
            wanted["image"], wanted["control_image"] = images[:2]
        elif self.images == "control" and "control_image" in accepted:
            wanted["control_image"] = images[0]
        elif self.images == "reference" and task == "inpainting":
            wanted["image"] = images[0]
            if images[1:]:
                wanted["image_reference"] = images[1]
        else:
            wanted["image"] = images[0] if len(images) == 1 else images

    def most_images(self, *, masked: bool) -> int:
        """How many source pictures a request can use. Beside the one that a mask belongs to, pipelines crop what they
        look at to one shape: one is whole."""
        return min(self.max_images, 2) if masked else self.max_images


USUAL = Family()
CONTROL = Family(images="control", max_images=2)
"""ControlNets and their kind draw along a map (edges, depth, a pose …): the first picture, or the second where one is
repainted."""


@functools.cache
def known() -> dict[str, Family]:
    """Every family that has a file here, by the class names that it answers for."""
    families: dict[str, Family] = {}
    for found in pkgutil.iter_modules(__path__):
        for family in importlib.import_module(f"{__name__}.{found.name}").FAMILIES:
            families |= dict.fromkeys(family.classes, family)
    return families


def family_of(class_name: str) -> Family:
    """The family of a pipeline's class; one without a file is USUAL, or CONTROL by its name."""
    return known().get(class_name) or (CONTROL if "Control" in class_name else USUAL)


@functools.lru_cache(256)
def family_at(folder: str) -> Family:
    """The family of a diffusers folder; USUAL where its model_index.json cannot be read (loading it will tell)."""
    try:
        index = json.loads((Path(folder) / "model_index.json").read_text(encoding="utf-8"))
        return family_of(str(index["_class_name"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return USUAL
