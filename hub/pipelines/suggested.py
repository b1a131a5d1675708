"""What the files of a diffusers folder tell of how it wants to be used, and what a manifest should say of it.

A family's file (hub.pipelines.families) turns the one, `Found`, into the other, `Suggested`. Torch-free: whoever adds
or fetches a model asks, too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from hub.types import Task

DENOISERS = ("unet", "transformer", "prior", "prior_prior", "decoder")
DECODERS = ("vae", "vqvae", "vqgan", "movq", "vae_decoder")
USUAL_FACTOR = 8
USUAL_SIDE = 1024


class Suggested(Struct, frozen=True, kw_only=True):
    """Values for a manifest. `native`, `min` and `max` are sides in pixels; the latter two follow from the first where
    they are None, and so does `multiple` from the folder. `guidance` is None for models that were distilled to one.
    `tasks`: where a folder can do less than its family. `guessed`: the manifest's fields that the files do not settle,
    as `defaults.guidance_scale`; `notes`: sentences for the owner."""

    native: int | None = None
    multiple: int | None = None
    min: int | None = None
    max: int | None = None
    steps: int
    guidance: float | None = None
    tasks: tuple[Task, ...] | None = None
    scheduler: str | None = None
    scheduler_options: dict[str, str | int | float | bool | None] = {}
    arguments: dict[str, str | int | float | bool | None] = {}
    guessed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def guess(self, why: str, **changes: Any) -> Suggested:
        """The same with other steps, guidance and scheduler, which are guessed. `why`: from what."""
        names = {
            "steps": "defaults.num_inference_steps",
            "guidance": "defaults.guidance_scale",
            "scheduler": "pipeline.scheduler",
            "scheduler_options": "pipeline.scheduler_options",
        }
        fields = [names[name] for name, value in changes.items() if name in names and (value or name == "guidance")]
        return replace(self, guessed=(*self.guessed, *fields), notes=(*self.notes, why), **changes)


class Found(Struct, frozen=True, kw_only=True):
    """A diffusers folder in its own words: the class of its pipeline, its model_index.json, and by the names of its
    components their configurations. `name`: what the repository or folder is called; some models tell nowhere else
    that they were distilled."""

    cls: str
    index: dict[str, Any]
    configs: dict[str, dict[str, Any]]
    name: str = ""

    @property
    def denoiser(self) -> dict[str, Any]:
        """The configuration of the first one."""
        return next((self.configs[name] for name in DENOISERS if name in self.configs), {})

    @property
    def scheduler(self) -> dict[str, Any]:
        """The noise scheduler's configuration."""
        return self.configs.get("scheduler", {})

    @property
    def scheduler_class(self) -> str:
        """Its class's name."""
        part = self.index.get("scheduler")
        return str(part[1]) if isinstance(part, list) and len(part) == 2 else ""

    @property
    def vae(self) -> dict[str, Any]:
        """The decoder's configuration."""
        return next((self.configs[name] for name in DECODERS if name in self.configs), {})

    @property
    def factor(self) -> int | None:
        """Pixels that a latent's side stands for; None where no configuration tells."""
        for name, less in (("encoder_block_out_channels", 1), ("temperal_downsample", 0), ("block_out_channels", 1)):
            value = self.vae.get(name)
            if isinstance(value, list) and less < len(value) <= 8:
                return int(2 ** (len(value) - less))
        return None

    @property
    def latent_side(self) -> int | None:
        """The denoiser's `sample_size`."""
        size = self.denoiser.get("sample_size")
        size = size[0] if isinstance(size, list) and size else size
        return size if type(size) is int and 0 < size <= 4096 else None

    @property
    def patch(self) -> int:
        """Latents that a token's side stands for."""
        config = self.denoiser
        patch = config.get("patch_size") or config.get("all_patch_size") or 1
        patches = patch if isinstance(patch, list) else [patch]
        sides = [each for each in patches if type(each) is int and 0 < each <= 16]
        return max(sides, default=1)

    @property
    def side(self) -> int | None:
        """Pixels of the pictures that it was trained on, as the files tell; None where they do not."""
        return self.latent_side * (self.factor or USUAL_FACTOR) if self.latent_side else None

    @property
    def wants_masks(self) -> bool:
        """Whether the denoiser takes a masked picture with every call: noise, picture, and the mask."""
        latents, taken = self.vae.get("latent_channels"), self.denoiser.get("in_channels")
        return type(latents) is int and taken == 2 * latents + 1

    def packed(self) -> int:
        """What sides must be a multiple of where four latents make a token."""
        return (self.factor or USUAL_FACTOR) * 2

    def named(self, pattern: str) -> bool:
        """Whether the name has this among its words (a regular expression)."""
        return re.search(rf"(?<![a-z]){pattern}(?![a-z])", self.name.lower()) is not None

    def steps_named(self) -> int | None:
        """The steps that the name tells: 4 for `-4step`."""
        found = re.search(r"(?<![0-9])(\d{1,2})[-_ ]?steps?(?![a-z])", self.name.lower())
        return int(found[1]) if found and int(found[1]) else None


def read_folder(folder: Path, name: str = "") -> Found:
    """What a folder says; files that cannot be read say nothing (loading them will tell)."""
    index = _read(folder / "model_index.json")
    cls = index.get("_class_name")
    configs = {}
    for part in index:
        if part.startswith("_") or not re.fullmatch(r"[a-z][a-z0-9_]*", part):
            continue
        for file in ("config.json", "scheduler_config.json"):
            if config := _read(folder / part / file):
                configs[part] = config
    return Found(cls=cls if isinstance(cls, str) else "", index=index, configs=configs, name=name or folder.name)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def few_steps(found: Found, usual: Suggested) -> Suggested:
    """How a U-Net that was distilled to few steps is used, as far as its scheduler and name tell it; else as usual."""
    trailing = found.scheduler.get("timestep_spacing") == "trailing"
    spaced = {} if trailing else {"scheduler_options": {"timestep_spacing": "trailing"}}
    if found.denoiser.get("time_cond_proj_dim") is not None:
        why = "Its U-Net takes the guidance as an input: a latent consistency model, which draws in 4 to 8 steps."
        return usual.guess(why, steps=found.steps_named() or 4, guidance=8.0)
    if found.scheduler_class in ("LCMScheduler", "TCDScheduler"):
        why = f"Its noise scheduler ({found.scheduler_class}) is one for few steps and hardly any guidance."
        return usual.guess(why, steps=found.steps_named() or 4, guidance=1.0)
    if found.named("lcm"):
        why = "By its name a latent consistency model: few steps, hardly any guidance."
        return usual.guess(why, steps=found.steps_named() or 4, guidance=1.0, scheduler="LCMScheduler")
    if found.named("lightning") or found.named("hyper[-_ ]?(sd|flux)[a-z]*"):
        why = "By its name distilled to few steps without guidance; timesteps end with the last (trailing)."
        euler = {} if trailing else {"scheduler": "EulerDiscreteScheduler"}
        return usual.guess(why, steps=found.steps_named() or 4, guidance=0.0, **euler, **spaced)
    if found.named("turbo") and trailing:
        why = "By its name and noise scheduler distilled to one to four steps without guidance."
        return usual.guess(why, steps=found.steps_named() or 1, guidance=0.0)
    if found.named("turbo"):
        why = "By its name (turbo) made for few steps and little guidance; its files do not tell how few."
        return usual.guess(why, steps=found.steps_named() or 8, guidance=2.0)
    return usual


def unknown(found: Found) -> Suggested:
    """Cautious values for a pipeline that no family's file knows."""
    named: tuple[Task, ...] = ("text-to-image",)
    if "Inpaint" in found.cls:
        named = ("inpainting",)
    elif any(word in found.cls for word in ("Img2Img", "Edit", "Pix2Pix", "Variation", "Upscale")):
        named = ("image-to-image",)
    multiple = max(8, (found.factor or USUAL_FACTOR) * max(found.patch, 2 if "transformer" in found.configs else 1))
    return Suggested(
        native=found.side,
        multiple=multiple,
        steps=30,
        guidance=4.0,
        tasks=named,
        guessed=("tasks", "size", "defaults.num_inference_steps", "defaults.guidance_scale"),
        notes=(f"How a {found.cls[:64]} is best used is not known here; the values are cautious ones.",),
    )
