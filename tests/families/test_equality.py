"""Every family through the weave: a picture in a batch of strangers is the one that `pipe(...)` draws alone.

The calls on diffusers' side are written out here as its documentation has them, not taken from the hub.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from PIL import Image

from hub.engine.protocol import Generate
from hub.types import Task
from tests.families import matrix
from tests.families.builders import NATIVE, build
from tests.families.harness import Bare, Engine, box_mask, noise, request

pytestmark = [  # diffusers' own
    pytest.mark.filterwarnings(r"ignore:(?s).*skip_prk_steps:FutureWarning"),
]

Call = Callable[["Wish"], dict[str, Any]]


class Wish(NamedTuple):
    """What is asked of a pipeline."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    size: tuple[int, int]
    negative: str | None = None
    strength: float = 0.7
    images: tuple[Image.Image, ...] = ()
    mask: Image.Image | None = None


def usual(wish: Wish) -> dict[str, Any]:
    """What most pipelines are given, for whichever task."""
    call = {
        "prompt": wish.prompt,
        "negative_prompt": wish.negative,
        "num_inference_steps": wish.steps,
        "guidance_scale": wish.guidance,
        "width": wish.size[0],
        "height": wish.size[1],
    }
    if wish.images:
        call |= {"image": wish.images[0], "strength": wish.strength}
    if wish.mask is not None:
        call["mask_image"] = wish.mask
    return call


def without(*names: str, call: Call = usual, **more: Any) -> Call:
    """The same call without some arguments, and with others."""
    return lambda wish: {name: value for name, value in call(wish).items() if name not in names} | more


def true_cfg(wish: Wish) -> dict[str, Any]:
    """Qwen-Image: its guidance needs a negative prompt, if only a blank."""
    call = usual(wish)
    return call | {"true_cfg_scale": call.pop("guidance_scale"), "negative_prompt": wish.negative or " "}


def looks_at(call: Call = usual, *, several: bool = False) -> Call:
    """The pictures are only looked at."""

    def made(wish: Wish) -> dict[str, Any]:
        arguments = call(wish)
        arguments.pop("strength", None)
        if several and len(wish.images) > 1:
            arguments["image"] = list(wish.images)
        return arguments

    return made


def kontext(wish: Wish) -> dict[str, Any]:
    """Kontext chooses the size itself unless it is told the area."""
    width, height = wish.size
    call = usual(wish) | {"max_area": width * height, "_auto_resize": False, "true_cfg_scale": 2.0}
    if wish.mask is None:
        call.pop("strength", None)
    return call


def controlled(wish: Wish) -> dict[str, Any]:
    """The last picture is the map; before it there may be one to repaint."""
    call = usual(wish)
    if len(wish.images) == 1:
        call.pop("strength")
        return call
    return call | {"control_image": wish.images[1]}


class Family(NamedTuple):
    """How diffusers draws: the class and the call of each task; the noise schedulers that are usual with it (None:
    the folder's own); and what a manifest of it would say."""

    tasks: dict[Task, tuple[str, Call]]
    schedulers: tuple[str | None, ...] = (None,)
    arguments: Mapping[str, Any] = MappingProxyType({})
    pictures: int = 1
    other_size: bool = True


def three(name: str, call: Call = usual) -> dict[Task, tuple[str, Call]]:
    """Diffusers' names for the three tasks."""
    return {
        "text-to-image": (f"{name}Pipeline", call),
        "image-to-image": (f"{name}Img2ImgPipeline", call),
        "inpainting": (f"{name}InpaintPipeline", call),
    }


OF_NOISE = (
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
)
FLUX_CFG = {"true_cfg_scale": 2.0}

FAMILIES: dict[str, Family] = {
    "stable-diffusion": Family(three("StableDiffusion"), OF_NOISE),
    "stable-diffusion-2": Family(three("StableDiffusion"), ("DDIMScheduler", "EulerDiscreteScheduler")),
    "stable-diffusion-inpainting": Family(
        {"inpainting": ("StableDiffusionInpaintPipeline", usual)}, ("DDIMScheduler", "PNDMScheduler")
    ),
    "stable-diffusion-xl": Family(three("StableDiffusionXL"), OF_NOISE),
    "stable-diffusion-3": Family(
        {
            "text-to-image": ("StableDiffusion3Pipeline", usual),
            "image-to-image": ("StableDiffusion3Img2ImgPipeline", usual),
            "inpainting": ("StableDiffusion3InpaintPipeline", usual),
        },
        (None, "FlowMatchHeunDiscreteScheduler"),
    ),
    "flux-dev": Family(three("Flux", without(**FLUX_CFG)), arguments=FLUX_CFG),
    "flux-schnell": Family(three("Flux", without("negative_prompt"))),
    "flux-kontext": Family(
        {
            "text-to-image": ("FluxKontextPipeline", kontext),
            "image-to-image": ("FluxKontextPipeline", kontext),
            "inpainting": ("FluxKontextInpaintPipeline", kontext),
        },
        arguments=FLUX_CFG,
    ),
    "flux-fill": Family({"inpainting": ("FluxFillPipeline", without("negative_prompt"))}),
    "flux2-klein": Family(
        {
            "text-to-image": ("Flux2KleinPipeline", without("negative_prompt")),
            "image-to-image": ("Flux2KleinPipeline", looks_at(without("negative_prompt"), several=True)),
            "inpainting": ("Flux2KleinInpaintPipeline", without("negative_prompt")),
        },
        pictures=2,
    ),
    "z-image": Family(three("ZImage")),
    "qwenimage": Family(three("QwenImage", true_cfg)),
    "qwenimage-edit": Family(
        {
            "image-to-image": ("QwenImageEditPipeline", looks_at(true_cfg)),
            "inpainting": ("QwenImageEditInpaintPipeline", true_cfg),
        },
        other_size=False,
    ),
    "qwenimage-edit-plus": Family(
        {"image-to-image": ("QwenImageEditPlusPipeline", looks_at(true_cfg, several=True))},
        pictures=2,
        other_size=False,
    ),
    "pixart-sigma": Family(
        {"text-to-image": ("PixArtSigmaPipeline", without(use_resolution_binning=False))},
        ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler"),
    ),
    "sana": Family(
        {"text-to-image": ("SanaPipeline", without(use_resolution_binning=False))},
        ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
    ),
    "controlnet": Family(three("StableDiffusionControlNet", controlled), ("DDIMScheduler", "UniPCMultistepScheduler")),
    "controlnet-xl": Family(three("StableDiffusionXLControlNet", controlled), ("EulerDiscreteScheduler",)),
}


def wishes(name: str, task: Task) -> list[Wish]:
    """Two that differ in all that may differ, and for new pictures a third of another shape."""
    family, (width, height) = FAMILIES[name], NATIVE[name]
    control = "controlnet" in name
    count = {"text-to-image": 0, "image-to-image": family.pictures, "inpainting": 1}[task] + control
    images = tuple(noise(number, width, height) for number in range(count))
    mask = box_mask(width, height) if task == "inpainting" else None
    found = [
        Wish("red cat", 1, 4, 5.0, (width, height), "blur", 0.8, images, mask),
        Wish("big dog", 2, 6, 2.0, (width, height), None, 0.6, images, mask),
    ]
    if task == "text-to-image" and family.other_size and not control:
        found.append(Wish("house on a hill", 3, 5, 3.0, (width * 3 // 2 // 32 * 32, height), None))
    return found


def frame(name: str, task: Task, wish: Wish, scheduler: str | None, number: int) -> Generate:
    """The same wish as the engine gets it."""
    repaints = task == "inpainting" or "Img2Img" in FAMILIES[name].tasks[task][0]
    return request(
        task,
        wish.size,
        list(wish.images),
        wish.mask,
        id=number,
        prompt=wish.prompt,
        seed=wish.seed,
        num_inference_steps=wish.steps,
        guidance_scale=wish.guidance,
        negative_prompt=wish.negative,
        strength=wish.strength if repaints else None,
        scheduler=scheduler,
        arguments=dict(FAMILIES[name].arguments),
    )


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    yield request.param, build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(autouse=True)
def at_a_small_area(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen-Image's edits read and draw a million pixels, whatever they are given: here as many as the others draw."""
    for name in ("edit", "edit_plus", "edit_inpaint"):
        module = importlib.import_module(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{name}")
        plain = module.calculate_dimensions
        monkeypatch.setattr(module, "calculate_dimensions", lambda _, ratio, plain=plain: plain(128 * 128, ratio))


@pytest.fixture(scope="module")
def engine(family: tuple[str, Path]) -> Engine:
    return Engine(family[1])


@pytest.fixture(scope="module")
def bare(family: tuple[str, Path]) -> Bare:
    return Bare(family[1])


def test_a_picture_in_a_batch_of_strangers_equals_the_one_that_diffusers_draws_alone(
    family: tuple[str, Path], engine: Engine, bare: Bare
) -> None:
    name, _ = family
    about = FAMILIES[name]
    assert engine.pipeline.tasks == set(about.tasks)
    for scheduler in about.schedulers:
        asked = [(task, wish) for task in about.tasks for wish in wishes(name, task)]
        frames = [frame(name, task, wish, scheduler, number) for number, (task, wish) in enumerate(asked)]
        drawn = engine.draw(frames)
        for outcome in drawn:
            if isinstance(outcome, BaseException):
                raise outcome
        assert max(engine.rows) > 1, "they met"
        for number, ((task, wish), pixels) in enumerate(zip(asked, drawn, strict=True)):
            class_name, call = about.tasks[task]
            alone = bare.draw(class_name, scheduler, wish.seed, **call(wish))
            difference = int(np.abs(pixels.astype(int) - alone.astype(int)).max())
            matrix.note(name, task, scheduler, difference)
            assert difference <= 1, (name, task, scheduler, difference)
            steps = engine.steps[number]
            assert steps == sorted(set(steps)), "progress only goes on"
            assert steps[-1][0] == steps[-1][1], "to the end"
        assert len({pixels.tobytes() for pixels in drawn}) == len(drawn), "they are different pictures"


@pytest.mark.parametrize("fits", ["module", "block"])
def test_a_device_with_room_for_one_module_or_one_block_draws_the_same(
    family: tuple[str, Path], engine: Engine, fits: str
) -> None:
    name, folder = family
    task = next(iter(FAMILIES[name].tasks))
    frames = [frame(name, task, wish, None, number) for number, wish in enumerate(wishes(name, task)[:2])]
    small = Engine(folder, fits=fits)
    drawn = small.draw(frames)
    for pixels, wanted in zip(drawn, engine.draw(frames), strict=True):
        if isinstance(pixels, BaseException):
            raise pixels
        assert np.abs(pixels.astype(int) - wanted.astype(int)).max() <= 1
    held = small.residency.on_device
    assert held <= small.residency.limit
    assert small.residency.uploads >= 3


def test_a_picture_that_is_cancelled_ends_before_the_next_forward(family: tuple[str, Path], engine: Engine) -> None:
    """In every family: and the stranger beside it is the same as without."""
    name, _ = family
    task = next(iter(FAMILIES[name].tasks))
    frames = [frame(name, task, wish, None, number) for number, wish in enumerate(wishes(name, task)[:2])]
    frames[0] = msgspec.structs.replace(frames[0], num_inference_steps=50)
    kept = engine.draw(frames[1:])[0]
    cancelled, beside = engine.draw(frames, cancel=0)
    assert cancelled is None
    assert len(engine.steps[0]) <= 2
    assert np.abs(beside.astype(int) - kept.astype(int)).max() <= 1


def test_a_forward_for_a_cancelled_picture_alone_is_not_even_finished(family: tuple[str, Path], engine: Engine) -> None:
    name, _ = family
    task = next(iter(FAMILIES[name].tasks))
    wanted = frame(name, task, wishes(name, task)[0], None, 0)
    begun = engine.draw_halted(msgspec.structs.replace(wanted, num_inference_steps=50))
    # The hooks of this test come after the engine's own: a block that was counted was about to run.
    assert begun == 0


def test_the_docs_have_what_was_seen() -> None:
    """After the tests above, all of them."""
    if matrix.families() != set(FAMILIES):
        pytest.skip("only some families were tried")
    if os.environ.get("HUB_UPDATE_DOCS"):
        matrix.write()
    assert matrix.written() == matrix.table(), "HUB_UPDATE_DOCS=1 scripts/test tests/families writes it"
