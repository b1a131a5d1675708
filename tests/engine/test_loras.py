"""LoRAs on the weave: what is drawn with one beside strangers equals what diffusers draws with it alone."""

from __future__ import annotations

import contextlib
import json
import os
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import pytest
import torch

from hub.engine.arguments import Refused
from hub.engine.loras import Adapter, Adapters, Fitter, LoraRead, Outfit, Wardrobe
from hub.engine.meeting import MeetingPoint
from hub.engine.protocol import Generate, WornLora
from hub.errors import InvalidRequest
from hub.loras import Loras
from hub.pipelines import Unsupported
from hub.pipelines.auto import LoadedPipeline
from hub.pipelines.loading import load_pipeline
from hub.pipelines.loras import Patch, ReadLora
from hub.types import Lora
from tests.families import loras
from tests.families.builders import build
from tests.families.harness import CPU, Bare, Engine, request
from tests.families.loras import ATTENTION, TEXT, kohyas, save, tensors

FAMILIES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "stable-diffusion": ("StableDiffusionPipeline", {"unet": (*ATTENTION, "conv1"), "text_encoder": TEXT}),
    "stable-diffusion-xl": ("StableDiffusionXLPipeline", {"unet": ATTENTION, "text_encoder_2": TEXT}),
    "flux-dev": ("FluxPipeline", {"transformer": (*ATTENTION, "proj_out"), "text_encoder": TEXT}),
}
OTHERS: dict[str, dict[str, Any]] = {
    "stable-diffusion-3": {},
    "flux2-klein": {},
    "z-image": {},
    "qwenimage": {"negative_prompt": " "},
    "sana": {"use_resolution_binning": False, "clean_caption": False},
}
"""With what the engine settles for their calls."""
WISHES: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "a", "seed": 1, "num_inference_steps": 4},
    "other": {"prompt": "b c", "seed": 2, "num_inference_steps": 3},
}


@pytest.fixture(scope="module", autouse=True)
def as_in_the_worker() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Setting:
    """A family's model in the engine and in diffusers' hands, and two LoRAs for it."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder = family, folder
        self.class_name, self.parts = FAMILIES[family]
        self.model = build(family, folder / "model")
        self.loras = folder / "loras"
        pipeline = diffusers.DiffusionPipeline.from_pretrained(self.model, local_files_only=True)
        self.pipeline = pipeline
        self.ink = save(self.loras, "ink", tensors(pipeline, self.parts, 1))
        self.oil = save(self.loras, "styles/oil", tensors(pipeline, dict([next(iter(self.parts.items()))]), 2, rank=2))
        self.engine, self.bare = Engine(self.model), Bare(self.model)

    def alone(self, wish: dict[str, Any], worn: list[WornLora]) -> Any:
        """As diffusers draws it."""
        call = {"width": 64, "height": 64, **{name: value for name, value in wish.items() if name != "seed"}}
        if not worn:
            return self.bare.draw(self.class_name, None, wish["seed"], **call)
        with self.bare.wearing(worn):
            return self.bare.draw(self.class_name, None, wish["seed"], **call)


@pytest.fixture(scope="module", params=list(FAMILIES))
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting("stable-diffusion", tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting("stable-diffusion-xl", tmp_path_factory.mktemp("large"))


def at(lora: WornLora, weight: float) -> WornLora:
    return msgspec.structs.replace(lora, weight=weight)


def frame(wish: dict[str, Any], *worn: WornLora, **more: Any) -> Generate:
    made: Generate = request("text-to-image", (64, 64), [], None, **{**wish, "loras": list(worn), **more})
    return made


def apart(one: Any, other: Any) -> int:
    for outcome in (one, other):
        if isinstance(outcome, BaseException):
            raise outcome
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_a_picture_with_a_lora_in_a_batch_of_strangers_equals_the_one_that_diffusers_draws_alone(
    setting: Setting,
) -> None:
    ink, oil = setting.ink, setting.oil
    before = setting.engine.draw([frame(WISHES["plain"])])[0]
    asked = [
        (wish, worn)
        for wish in WISHES.values()
        for worn in ([], [ink], [at(ink, 0.4)], [oil], [at(oil, -0.5), at(ink, 0.7)])
    ]
    drawn = setting.engine.draw([frame(wish, *worn, id=number) for number, (wish, worn) in enumerate(asked)])
    for (wish, worn), pixels in zip(asked, drawn, strict=True):
        assert apart(pixels, setting.alone(wish, worn)) <= 1, worn
    assert len({pixels.tobytes() for pixels in drawn}) == len(drawn), "each LoRA is seen"
    assert apart(before, setting.engine.draw([frame(WISHES["plain"])])[0]) == 0, "bit by bit"


@pytest.mark.parametrize("fits", ["module", "block"])
@pytest.mark.parametrize("family", ["stable-diffusion", "flux-dev"])
def test_where_weights_come_and_go_they_are_drawn_with_all_the_same(family: str, fits: str, tmp_path: Path) -> None:
    class_name, parts = FAMILIES[family]
    with torch.inference_mode(False):  # as on the loader's thread
        engine, bare = Engine(build(family, tmp_path / "model"), fits=fits), Bare(tmp_path / "model")
        lora = save(tmp_path, "lora", tensors(engine.pipeline._base, parts, 3))
    asked = [(wish, worn) for wish in WISHES.values() for worn in ([], [lora])]
    drawn = engine.draw([frame(wish, *worn, id=number) for number, (wish, worn) in enumerate(asked)])
    assert engine.residency.uploads > 1, "they did"
    for (wish, worn), pixels in zip(asked, drawn, strict=True):
        call = {"width": 64, "height": 64, **{name: value for name, value in wish.items() if name != "seed"}}
        with bare.wearing(worn) if worn else contextlib.nullcontext():
            assert apart(pixels, bare.draw(class_name, None, wish["seed"], **call)) <= 1


@pytest.mark.parametrize("family", list(OTHERS))
def test_other_families_take_them_too(family: str, tmp_path: Path) -> None:
    engine, bare = Engine(build(family, tmp_path / "model")), Bare(tmp_path / "model")
    pipeline = engine.pipeline._base
    lora = save(tmp_path, "lora", tensors(pipeline, {"transformer": ("to_q", "to_v", "to_out.0")}, 3))
    plain, drawn = engine.draw([frame(WISHES["plain"]), frame(WISHES["plain"], lora)])
    call = {"width": 64, "height": 64, "prompt": "a", "num_inference_steps": 4, **OTHERS[family]}
    with bare.wearing([lora]):
        assert apart(drawn, bare.draw(type(pipeline).__name__, None, 1, **call)) <= 1
    assert apart(drawn, plain) > 1


def test_kohyas_files_for_flux_change_the_layers_that_it_has_in_one(tmp_path: Path) -> None:
    """Queries, keys and values are one layer there and three in diffusers."""
    engine, bare = Engine(build("flux-dev", tmp_path / "model")), Bare(tmp_path / "model")
    transformer = engine.pipeline._base.transformer
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    state: dict[str, Any] = {}
    for name, into, out in (("img_attn_qkv", width, 3 * width), ("img_attn_proj", width, width)):
        state[f"lora_unet_double_blocks_0_{name}.lora_down.weight"] = torch.randn(2, into) / into**0.5
        state[f"lora_unet_double_blocks_0_{name}.lora_up.weight"] = torch.randn(out, 2)
        state[f"lora_unet_double_blocks_0_{name}.alpha"] = torch.tensor(1.0)
    lora = save(tmp_path, "lora", state)
    plain, drawn = engine.draw([frame(WISHES["plain"]), frame(WISHES["plain"], lora)])
    call = {"width": 64, "height": 64, "prompt": "a", "num_inference_steps": 4}
    with bare.wearing([lora]):
        assert apart(drawn, bare.draw("FluxPipeline", None, 1, **call)) <= 1
    assert apart(drawn, plain) > 1


def test_equal_loras_share_forwards_and_others_do_not(small: Setting) -> None:
    ink, oil, wish = small.ink, small.oil, WISHES["plain"]
    engine = small.engine
    for worn in ([ink], [at(ink, 0.5), oil], []):
        engine.draw([frame({**wish, "seed": seed}, *worn) for seed in range(4)])
        assert engine.rows == [4] * 4, worn
    engine.draw([frame(wish, ink, oil), frame({**wish, "seed": 2}, oil, ink)])
    assert engine.rows == [2] * 4, "their order does not matter"
    engine.draw([frame(wish), frame(wish, ink), frame(wish, at(ink, 0.5)), frame(wish, oil)])
    assert engine.rows == [1] * 16
    engine.draw([frame(wish), frame({**wish, "seed": 2}, at(ink, 0))])
    assert engine.rows == [2] * 4, "none of a LoRA is none"


def test_what_text_encoders_have_said_is_not_mixed_up(small: Setting) -> None:
    """The same prompt over and over, so that it is remembered, with and without a LoRA that changes how it is read."""
    text = save(small.loras, "text", tensors(small.pipeline, {"text_encoder": TEXT}, 5))
    wish = {**WISHES["plain"], "prompt": "over"}
    plain = small.alone(wish, [])
    changed = small.alone(wish, [text])
    assert apart(plain, changed) > 1
    for _ in range(3):
        for worn, wanted in (([], plain), ([text], changed)):
            assert apart(small.engine.draw([frame(wish, *worn)])[0], wanted) <= 1


def test_files_of_kohyas_trainer_are_read_with_their_alphas(small: Setting) -> None:
    lora = save(small.loras, "kohya", kohyas(small.pipeline, small.parts, (2.0,), 3))
    drawn = small.engine.draw([frame(WISHES["plain"], lora), frame(WISHES["plain"])])
    assert apart(drawn[0], small.alone(WISHES["plain"], [lora])) <= 1
    assert apart(*drawn) > 1


def test_each_layer_of_a_kohya_file_has_its_own_alpha(small: Setting) -> None:
    """diffusers 0.42 gives all layers of attention the most frequent one."""
    alphas = (1.0, 2.0, 3.0)
    lora = save(small.loras, "kohya3", kohyas(small.pipeline, {"unet": ATTENTION}, alphas, 3))
    baked = tensors(small.pipeline, {"unet": ATTENTION}, 3)
    for number, key in enumerate(key for key in baked if key.endswith("lora_B.weight")):
        baked[key] = baked[key] * (alphas[number % 3] / 4)
    drawn = small.engine.draw([frame(WISHES["plain"], lora)])[0]
    assert apart(drawn, small.alone(WISHES["plain"], [save(small.loras, "baked", baked)])) <= 1


@pytest.mark.parametrize("more", [{}, {"alpha_pattern": {"attn1.to_q": 9}}, {"use_rslora": True}])
def test_the_alpha_in_the_header_of_diffusers_trainer_counts(small: Setting, more: dict[str, Any]) -> None:
    config = {"r": 4, "lora_alpha": 2, "target_modules": list(ATTENTION), **more}
    header = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in config.items()})}
    lora = save(small.loras, f"header{len(str(more))}", tensors(small.pipeline, {"unet": ATTENTION}, 4), header)
    drawn = small.engine.draw([frame(WISHES["plain"], lora)])[0]
    assert apart(drawn, small.alone(WISHES["plain"], [lora])) <= 1


def test_a_configuration_in_the_header_decides_nothing_but_numbers(small: Setting) -> None:
    """PEFT's would import what it names, and repeat layers of the model."""
    config = {"r": 1, "lora_alpha": 4, "megatron_core": "antigravity", "layer_replication": [[0, 9]], "bias": "all"}
    header = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in config.items()})}
    state = tensors(small.pipeline, {"unet": ATTENTION}, 1)
    plain, told = save(small.loras, "untold", state), save(small.loras, "told", state, header)
    drawn = small.engine.draw([frame(WISHES["plain"], plain), frame(WISHES["plain"], told)])
    assert apart(*drawn) == 0


def words(setting: Setting, lora: WornLora) -> str:
    with pytest.raises(Unsupported) as caught:
        setting.engine.adapters.wearable.read(lora.file.name, lora.file.path, lora.file.identity)
    return str(caught.value)


def broken(setting: Setting, name: str, data: bytes) -> WornLora:
    path = setting.loras / f"{name}.safetensors"
    path.write_bytes(data)
    return loras.worn(setting.loras, name)


def test_a_lora_for_another_model_is_refused_in_words_that_say_what_does_not_fit(
    small: Setting, large: Setting
) -> None:
    assert words(small, large.ink).startswith("The LoRA 'ink' does not fit this model: ")
    assert words(large, small.ink).startswith("The LoRA 'ink' does not fit this model: ")
    state = tensors(small.pipeline, {"unet": ("attn1.to_q",)})
    key = next(key for key in state if key.endswith("lora_A.weight"))
    narrow = save(small.loras, "narrow", {**state, key: state[key][:, :-1].contiguous()})
    layer = key.removesuffix(".lora_A.weight")
    assert f"'{layer}' needs 4x64 and 64x4, and it has 4x63 and 64x4" in words(small, narrow)
    half = save(small.loras, "half", {name: value for name, value in state.items() if name != key})
    assert "has only one half" in words(small, half)
    more = save(small.loras, "more", {**state, "vae.decoder.conv_in.lora_A.weight": torch.ones(1, 1)})
    assert "changes 'vae'" in words(small, more)
    odd = save(small.loras, "odd", {**state, f"{layer}.lora_B.bias": torch.ones(64)})
    assert "no plain LoRA" in words(small, odd)
    dora = save(small.loras, "dora", {**state, f"{layer}.lora_magnitude_vector": torch.ones(64)})
    assert "is a DoRA" in words(small, dora)
    strange = save(small.loras, "strange", {"lora_unet_what.lora_down.weight": torch.ones(1, 1)})
    assert "for another model" in words(small, strange)
    assert "is empty" in words(small, save(small.loras, "empty", {}))
    whole = save(small.loras, "whole", {name: value.long() for name, value in state.items()})
    assert "decimal numbers" in words(small, whole)


def test_files_that_are_broken_or_something_else_are_refused(small: Setting, tmp_path: Path) -> None:
    data = Path(small.ink.file.path).read_bytes()
    torch.save({"unet.lora": torch.ones(1)}, tmp_path / "pickle.pt")
    bad = [data[:-1], data[:100], data[:4], b"", (tmp_path / "pickle.pt").read_bytes(), b"\xff" * 64]
    for number, each in enumerate(bad):
        told = words(small, broken(small, f"bad{number}", each))
        assert told == f"The LoRA 'bad{number}' is no safetensors file, or a damaged one."
    state = tensors(small.pipeline, {"unet": ("attn1.to_q",)})
    for number, text in enumerate(("[1", "[" * 100_000, '{"unet.lora_alpha": "much"}', '{"unet.lora_alpha": NaN}')):
        header = {"lora_adapter_metadata": text}
        assert "damaged" in words(small, save(small.loras, f"badheader{number}", state, header))


def test_a_file_that_is_no_longer_the_one_that_was_asked_for_is_not_used(small: Setting, tmp_path: Path) -> None:
    data = Path(small.ink.file.path).read_bytes()
    asked = broken(small, "changing", data)
    broken(small, "changing", data[:-4] + b"\0\0\0\0")
    assert "has changed" in words(small, asked)
    path = small.loras / "changing.safetensors"
    asked = loras.worn(small.loras, "changing")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "cannot be read" in words(small, asked)
    path.unlink()
    assert "cannot be read" in words(small, asked)
    os.mkfifo(path)
    assert "has changed" in words(small, asked)
    path.unlink()


def structure(module: torch.nn.Module) -> list[tuple[str, int]]:
    return [(name, id(each)) for name, each in module.named_modules()]


def put(adapters: Adapters, lora: WornLora) -> Outfit:
    if adapters.missing([lora]):
        adapters.put(lora.file, adapters.wearable.read(lora.file.name, lora.file.path, lora.file.identity))
    return adapters.outfit([lora])


def test_the_least_recently_used_leaves_and_the_last_one_restores_the_module(small: Setting) -> None:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(small.model, local_files_only=True)
    unet, text_encoder = structure(pipeline.unet), structure(pipeline.text_encoder)
    adapters = Adapters(LoadedPipeline(pipeline), most=1)
    outfit = put(adapters, small.ink)
    wardrobe = adapters.wardrobe(pipeline.text_encoder)
    assert wardrobe is not None
    assert structure(pipeline.text_encoder) == text_encoder
    wardrobe.wear(wardrobe.part_of(outfit))
    assert structure(pipeline.text_encoder) != text_encoder
    other = put(adapters, small.oil)
    assert adapters.missing([small.ink, small.oil]) == [], "one that is drawn with stays"
    del outfit
    third = put(adapters, save(small.loras, "third", tensors(small.pipeline, {"unet": ("attn1.to_q",)}, 9)))
    assert adapters.missing([small.ink]) == [small.ink.file]
    assert structure(pipeline.text_encoder) == text_encoder
    assert adapters.missing([small.oil]) == []
    del other, third
    text = put(adapters, save(small.loras, "text2", tensors(small.pipeline, {"text_encoder": TEXT}, 9)))
    assert structure(pipeline.unet) == unet
    assert not any("lora" in name for name in pipeline.unet.state_dict())
    del text


def test_loras_leave_by_their_size_too(small: Setting) -> None:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(small.model, local_files_only=True)
    adapters = Adapters(LoadedPipeline(pipeline), budget=1)
    put(adapters, small.ink)
    put(adapters, small.oil)
    assert adapters.missing([small.ink, small.oil]) == [small.ink.file]


def test_one_that_cannot_be_loaded_leaves_nothing_behind(small: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(small.model, local_files_only=True)
    before = structure(pipeline.unet), structure(pipeline.text_encoder)
    adapters = Adapters(LoadedPipeline(pipeline))
    plain = Wardrobe._put
    count = 0

    def full(self: Wardrobe, *arguments: Any) -> None:
        nonlocal count
        count += 1
        plain(self, *arguments)
        if count == 20:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(Wardrobe, "_put", full)
    with pytest.raises(torch.OutOfMemoryError):
        put(adapters, small.ink)
    assert (structure(pipeline.unet), structure(pipeline.text_encoder)) == before
    assert adapters.missing([small.ink]) == [small.ink.file]


def test_a_module_that_two_models_have_wears_what_each_asks_for(small: Setting) -> None:
    """And forgets what a model that has gone had put into it."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(small.model, local_files_only=True)
    loaded = [LoadedPipeline(pipeline), LoadedPipeline(pipeline)]
    first = Adapters(loaded[0])
    outfit = put(first, small.ink)
    wardrobe = first.wardrobe(pipeline.unet)
    assert wardrobe is not None
    before = structure(pipeline.unet)
    wardrobe.wear(wardrobe.part_of(outfit))
    second = Adapters(loaded[1])
    assert structure(pipeline.unet) == before, "the second looks at the module as it was loaded"
    assert second.wardrobe(pipeline.unet) is wardrobe
    other = put(second, small.oil)
    assert [len(wardrobe.part_of(each)) for each in (outfit, other)] == [1, 1]
    assert wardrobe.part_of(outfit) != wardrobe.part_of(other)
    del first
    put(second, save(small.loras, "later", tensors(small.pipeline, {"unet": ("attn1.to_q",)}, 9)))
    assert wardrobe.part_of(outfit) == ()
    assert len(wardrobe.part_of(other)) == 1


@pytest.fixture
def done() -> queue.Queue[LoraRead]:
    return queue.Queue()


@pytest.fixture
def fitter(done: queue.Queue[LoraRead]) -> Fitter:
    return Fitter(CPU, done.put)


def test_requests_for_the_same_lora_wait_for_one_reading(
    small: Setting, fitter: Fitter, done: queue.Queue[LoraRead]
) -> None:
    pipeline = load_pipeline(str(small.model), "float32", CPU)
    asked = [frame(WISHES["plain"], small.ink, id=number) for number in range(3)]
    asked.append(frame(WISHES["plain"], small.ink, small.oil, id=3))
    assert fitter.ready(frame(WISHES["plain"]), pipeline)
    assert [fitter.ready(each, pipeline) for each in asked] == [False] * 4
    assert fitter.busy == {asked[0].model: 4}, "so that the model is not unloaded meanwhile"
    fitter.forget(1)
    ink = done.get(timeout=60)
    assert done.empty(), "one is read after another"
    assert fitter.take(ink) == ([asked[0], asked[2], asked[3]], None)
    assert fitter.ready(asked[0], pipeline)
    assert not fitter.ready(asked[3], pipeline), "it needs another one"
    assert fitter.take(done.get(timeout=60)) == ([asked[3]], None)
    assert fitter.ready(asked[3], pipeline)
    assert not fitter.busy
    outfit = fitter.outfit(asked[3], pipeline)
    assert outfit is not None
    assert [(each.name, each.weight) for each in outfit.told] == [("ink", 1.0), ("styles/oil", 1.0)]
    assert done.empty()


def test_a_lora_that_does_not_fit_ends_its_requests_alone(
    small: Setting, large: Setting, fitter: Fitter, done: queue.Queue[LoraRead]
) -> None:
    pipeline = load_pipeline(str(small.model), "float32", CPU)
    bad, good = frame(WISHES["plain"], large.ink, id=1), frame(WISHES["plain"], small.oil, id=2)
    assert not fitter.ready(bad, pipeline) and not fitter.ready(good, pipeline)
    for _ in range(2):
        read = done.get(timeout=60)
        (back,), error = fitter.take(read)
        assert back == (bad if isinstance(error, Refused) else good)
        assert error is None or (isinstance(error, Refused) and error.param == "loras")
    assert fitter.ready(good, pipeline)
    assert not fitter.ready(bad, pipeline), "it is looked at anew"
    assert isinstance(fitter.take(done.get(timeout=60))[1], Refused)


def test_a_lora_that_fits_one_of_two_models_ends_the_others_request_alone(
    small: Setting, large: Setting, fitter: Fitter, done: queue.Queue[LoraRead]
) -> None:
    pipelines = [load_pipeline(str(each.model), "float32", CPU) for each in (small, large)]
    asked = [frame(WISHES["plain"], small.ink, id=number) for number in range(2)]
    assert [fitter.ready(*each) for each in zip(asked, pipelines, strict=True)] == [False, False]
    for _ in range(2):
        read = done.get(timeout=60)
        back, error = fitter.take(read)
        assert (back, error is None) == ([asked[pipelines.index(read.pipeline)]], read.pipeline is pipelines[0])


def test_a_lora_with_two_names_is_one(small: Setting, fitter: Fitter, done: queue.Queue[LoraRead]) -> None:
    (small.loras / "alias.safetensors").symlink_to("ink.safetensors")
    pipeline = load_pipeline(str(small.model), "float32", CPU)
    asked = [frame(WISHES["plain"], loras.worn(small.loras, name), id=len(name)) for name in ("ink", "alias")]
    assert [fitter.ready(each, pipeline) for each in asked] == [False, False]
    assert fitter.take(done.get(timeout=60)) == (asked, None)
    assert fitter.ready(asked[1], pipeline)
    with pytest.raises(InvalidRequest, match="named twice"):
        Loras(small.loras).find([Lora(name="ink"), Lora(name="alias")])


def test_a_pipeline_without_loras_refuses_them(small: Setting, tmp_path: Path, fitter: Fitter) -> None:
    pipeline = load_pipeline(str(build("pixart-sigma", tmp_path)), "float32", CPU)
    assert fitter.adapters(pipeline).wardrobe(pipeline.own_copy("text-to-image").transformer) is None
    with pytest.raises(Refused, match="takes no LoRAs"):
        fitter.ready(frame(WISHES["plain"], small.ink), pipeline)


class Compiled:
    """A compiled forward's stand-in, as the meeting point calls it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, arguments: dict[str, Any]) -> Any:
        self.calls += 1
        return arguments["x"]


def test_what_was_compiled_rests_while_a_lora_is_in_the_module() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4))
    module.forward = lambda x: module[0](x)  # type: ignore[method-assign]  # noqa: PLW0108  # the layer is replaced
    wardrobe, adapter = Wardrobe(), Adapter(ReadLora("", {}))
    point = MeetingPoint(module, "forward", wardrobe=wardrobe)
    compiled = Compiled()
    point._compiled = compiled  # type: ignore[assignment]
    x = torch.ones(1, 4)
    patch = Patch(torch.ones(1, 4), torch.ones(4, 1), 1.0)
    wardrobe.add(module, adapter, {"0": patch})
    assert torch.equal(point._call({"x": x}), x)
    wardrobe.wear(((adapter.name, 0.5),))
    assert torch.equal(point._call({"x": x}), module[0](x))
    assert compiled.calls == 1
    wardrobe.wear(())
    point._call({"x": x})
    assert compiled.calls == 2


@pytest.mark.parametrize("lora_is_behind", [True, False])
def test_a_lora_follows_its_module_to_another_device(lora_is_behind: bool) -> None:
    """The residency of modules moves what is in them at the time: here to a device without memory."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 4))
    wardrobe, adapter = Wardrobe(), Adapter(ReadLora("", {}))
    wardrobe.add(module, adapter, {"0": Patch(torch.ones(1, 4), torch.ones(4, 1), 1.0)})
    wardrobe.wear(() if lora_is_behind else ((adapter.name, 1.0),))
    module.to("meta")
    wardrobe.wear(((adapter.name, 0.5),))
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert module(torch.ones(1, 4, device="meta")).shape == (1, 4)
