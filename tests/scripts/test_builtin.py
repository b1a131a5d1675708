"""What the built-in model learns from: things, scenes, captions, their tokens, and the judges."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import builtin.diffusion as diffusing  # noqa: E402
import builtin.judge as judging  # noqa: E402
import builtin.landscapes as landscapes  # noqa: E402
import builtin.looking as looking  # noqa: E402
import builtin.loop as looping  # noqa: E402
import builtin.namer as naming  # noqa: E402
import builtin.names as calling  # noqa: E402
import builtin.scenes as scenes  # noqa: E402
import builtin.text as reading  # noqa: E402
import builtin.things as finding  # noqa: E402
import builtin.tokens as tokens  # noqa: E402
import builtin.vae as encoding  # noqa: E402
import train_builtin as training  # noqa: E402
from builtin.captions import Captions  # noqa: E402
from builtin.shapes import PALETTE, SHAPES, colour_rgb  # noqa: E402
from builtin.words import UNHEEDED  # noqa: E402
from diffusers.models.attention_processor import Attention, AttnProcessor  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from hub.vocabulary import read_vocabulary  # noqa: E402

EMOJI: list[tuple[str, str, int, list[str]]] = [
    ("1F408", "cat", 3, ["feline", "kitty", "happy", "boba"]),
    ("1F431", "cat face", 3, ["cat", "kitty"]),
    ("1F697", "automobile", 5, ["car", "vehicle"]),
    ("1F3CE", "racing car", 5, ["car", "zoom"]),
    ("1F352", "cherries", 4, ["fruit"]),
    ("1F34A", "tangerine", 4, ["orange"]),
    ("2B50", "star", 5, ["gold"]),
    ("1F468-200D-1F52C", "man scientist", 1, ["chemist"]),
    ("1F1E9-1F1EA", "flag: Germany", 9, []),
]
SENSES = {
    "feline%1:05:00:: 1": 1, "kitty%1:05:01:: 1": 1, "happy%3:00:00:: 1": 9, "car%1:06:00:: 1": 50,
    "vehicle%1:06:00:: 1": 9, "orange%1:13:00:: 1": 5, "zoom%1:04:00:: 1": 2, "zoom%2:38:00:: 1": 4,
    "fruit%1:20:00:: 1": 5,
}  # fmt: skip
PICTURES, NAMES, SENSE = map(finding.package_name, (finding.PICTURES, finding.NAMES, finding.SENSES))


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    """On, whatever the engine's tests, which turn them off for their thread, left behind in this process."""
    with torch.enable_grad():
        yield


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The three packages, as they lie after the download, with nine of their pictures."""
    icons = {label.replace(" ", "-"): {"body": "<circle/>"} for _, label, _, _ in EMOJI}
    chars = {code.lower(): label.replace(" ", "-") for code, label, _, _ in EMOJI}
    data = [
        {"hexcode": code, "label": label, "group": group, "tags": tags, "order": at}
        for at, (code, label, group, tags) in enumerate(EMOJI)
    ]
    senses = tmp_path / "packages" / SENSE / "package" / "dict" / "index.sense"
    senses.parent.mkdir(parents=True)
    senses.write_text("".join(f"{sense} 1 {uses}\n" for sense, uses in SENSES.items()))
    for place, found in (
        (f"{PICTURES}/package/icons.json", {"icons": icons}),
        (f"{PICTURES}/package/chars.json", chars),
        (f"{NAMES}/package/en/data.json", data),
    ):
        file = tmp_path / "packages" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    return tmp_path


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Three things: a red disc with a green dot, a blue bar, a yellow ring."""
    grid = (np.arange(finding.SIDE) + 0.5) / finding.SIDE - 0.5
    x, y = np.meshgrid(grid, grid)
    made = np.zeros((3, finding.SIDE, finding.SIDE, 4), np.uint8)
    made[0][np.hypot(x, y) < 0.45] = (220, 30, 40, 255)
    made[0][np.hypot(x - 0.1, y) < 0.12] = (20, 160, 60, 255)
    made[1][(np.abs(y) < 0.15) & (np.abs(x) < 0.45)] = (30, 60, 220, 255)
    made[2][np.abs(np.hypot(x, y) - 0.36) < 0.09] = (250, 220, 40, 255)
    return made


THINGS = (finding.Thing("cat", "cat", 3, ("kitty",)), finding.Thing("hot dog", "hot-dog", 4, ()),
          finding.Thing("dog", "dog", 3, ("hound",)))  # fmt: skip


def drawn(count: int, seed: int = 0, only: Any = None) -> list[scenes.Scene]:
    rng = np.random.default_rng(seed)
    return [scenes.draw_scene(rng, 3, only) for _ in range(count)]


def test_things_have_the_names_that_people_say_and_what_is_drawn_otherwise_is_none(work: Path) -> None:
    found = {thing.name: thing for thing in finding.things(work)}
    assert list(found) == ["cat", "cat face", "car", "race car", "cherries", "tangerine"]
    assert "kitty" in found["cat"].words, "what two claim is the first one's"
    assert "boba" in found["cat"].words, "of what WordNet does not know, faces apart"
    assert "happy" not in found["cat"].words, "no noun"
    assert "zoom" not in found["race car"].words, "mostly a verb"
    assert "automobile" in found["car"].words
    assert "vehicle" in found["car"].words
    assert not any("car" in thing.words for thing in found.values()), "a name leads to nobody else"


@pytest.mark.parametrize(
    ("one", "many"),
    [
        *(("cat", "cats"), ("fox", "foxes"), ("cherry", "cherries"), ("boy", "boys"), ("bus", "buses")),
        *(("wolf", "wolves"), ("mouse", "mice"), ("snowman", "snowmen"), ("tomato", "tomatoes"), ("sheep", "sheep")),
        *(("grapes", "grapes"), ("cherries", "cherries"), ("octopus", "octopuses"), ("glass", "glasses")),
        *(("fire truck", "fire trucks"), ("glass of milk", "glasses of milk"), ("nest with eggs", "nests with eggs")),
    ],
)
def test_plurals(one: str, many: str) -> None:
    assert calling.plural(one) == many


def test_the_same_seed_gives_the_same_scenes_pictures_and_captions(pictures: np.ndarray) -> None:
    def all_of(seed: int) -> tuple[list[scenes.Scene], bytes, list[str]]:
        rng, captions, found = np.random.default_rng(seed), Captions(THINGS), drawn(30, seed)
        return (
            found,
            b"".join(scenes.render(each, pictures).tobytes() for each in found),
            [captions.of(each, rng) for each in found],
        )

    assert all_of(3) == all_of(3)
    assert all_of(3) != all_of(4)


@pytest.mark.parametrize("only", ["thing", "shape"])
def test_training_never_draws_what_is_held_out(only: Any) -> None:
    trained = {scenes.combination(each) for each in drawn(4000) if len(each.objects) == 1}
    asked = {scenes.combination(each) for each in drawn(400, 1, only)}
    assert asked
    assert not trained & asked


def test_all_kinds_of_scenes_occur() -> None:
    found = drawn(3000)
    for kind, names in (
        ("layout", scenes.LAYOUTS),
        ("style", scenes.STYLES),
        ("position", scenes.POSITIONS),
        ("extent", scenes.SIZES),
    ):
        assert set(Counter(getattr(each, kind) for each in found)) == set(names)
    grounds = {each.ground for each in found}
    assert {(place, time) for place in landscapes.PLACES for time in landscapes.TIMES} <= grounds
    assert set(PALETTE) <= grounds
    assert {each.count for each in found} == {1, 2, 3, 4}


def test_things_are_where_the_caption_says(pictures: np.ndarray) -> None:
    for position, (dx, dy) in {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}.items():
        scene = scenes.place([(1, None)], "white", "vivid", position=position, extent="small")
        ys, xs = np.nonzero(scenes.render(scene, pictures)[..., 0] < 128)
        assert np.sign(round((xs.mean() - 64) / 20)) == dx
        assert np.sign(round((ys.mean() - 64) / 20)) == dy


def test_every_caption_is_read_whole_and_in_known_words() -> None:
    tokenizer = tokens.new_tokenizer(THINGS)
    rng, captions = np.random.default_rng(5), Captions(THINGS)
    for scene in drawn(500, 5):
        found = tokenizer.encode(captions.of(scene, rng, plain=True))
        assert len(found.ids) <= tokens.LENGTH
        assert "[UNK]" not in found.tokens, found.tokens
        things = {
            what if isinstance(what, int) else len(THINGS) + SHAPES.index(what)
            for what in {each.what for each in scene.objects}
        }
        parts = [ord(token) - tokens.FIRST for token in found.tokens if len(token) == 1 and ord(token) >= tokens.FIRST]
        assert {part // tokens.PATCHES for part in parts} == things
        assert len(parts) % tokens.PATCHES == 0


@pytest.mark.parametrize(
    ("text", "numbers", "many"),
    [
        ("a cat", [0], False),
        ("Kitties!", [0], True),
        ("a hot dog", [1], False),
        ("two dogs", [2], True),
        ("a HOUND and a cat", [2, 0], False),
        ("a catalogue", [], False),
        ("a red disc", [3], False),
        ("a cat and a star", [0, 6], False),
    ],
)
def test_names_synonyms_and_plurals_become_the_parts_of_their_picture(
    text: str, numbers: list[int], many: bool
) -> None:
    found = tokens.new_tokenizer(THINGS).encode(text).tokens
    parts = [token for token in found if len(token) == 1 and ord(token) >= tokens.FIRST]
    assert "".join(parts) == "".join(tokens.tokens_of(number) for number in numbers)
    assert (tokens.MANY in found) == many


def test_training_reads_captions_as_the_shipped_tokenizer_does(tmp_path: Path) -> None:
    tokens.write_tokenizer(tmp_path, THINGS)
    shipped = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    trained = tokens.new_tokenizer(THINGS, names=False)
    for scene in drawn(200, 7):
        told, told_again = (
            Captions(THINGS, as_tokens=as_tokens).of(scene, np.random.default_rng(8)) for as_tokens in (False, True)
        )
        assert shipped(told).input_ids == trained.encode(told_again).ids, told


def as_asked(scene: scenes.Scene) -> judging.ShapeSeen:
    """What the judge should see in a scene of one shape."""
    (shape,) = scene.objects
    return judging.ShapeSeen(str(shape.colour), str(scene.ground), scene.position, str(shape.what))


def test_the_judges_find_real_renders_right(pictures: np.ndarray) -> None:
    for scene in drawn(150, 2, "shape"):
        assert judging.shape_in(scenes.render(scene, pictures)) == as_asked(scene)
    for scene in drawn(150, 3, "thing"):
        picture = scenes.render(scene, pictures)
        assert scene.ground in judging.grounds_of(picture, scene.style), scene
        assert scene.style in judging.style_of(picture, str(scene.ground)), scene


@pytest.mark.parametrize(
    ("key", "what", "ground", "position"),
    [
        ("colour", ("circle", "green"), "yellow", "right"),
        ("background", ("circle", "red"), "black", "right"),
        ("position", ("circle", "red"), "yellow", "left"),
        ("shape", ("cross", "red"), "yellow", "right"),
    ],
)
def test_the_judge_finds_another_shape_wrong(
    pictures: np.ndarray, key: str, what: tuple[str, str], ground: str, position: str
) -> None:
    asked = judging.ShapeSeen("red", "yellow", "right", "circle")
    other = scenes.place([what], ground, "vivid", position=position)
    seen = judging.shape_in(scenes.render(other, pictures))
    assert {name for name in vars(asked) if getattr(asked, name) != getattr(seen, name)} == {key}


def test_the_judge_sees_no_shape_in_an_empty_picture_or_in_noise() -> None:
    empty = judging.shape_in(np.full((128, 128, 3), 132, dtype=np.uint8))
    assert (empty.background, empty.colour, empty.shape) == ("gray", "none", "none")
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert judging.shape_in(noise).shape == "none"


def test_natural_colours_are_less_saturated_than_vivid_ones() -> None:
    for name in PALETTE:
        assert np.ptp(colour_rgb(name, "natural")) == pytest.approx(0.65 * np.ptp(colour_rgb(name)), abs=1)


def test_the_judges_find_another_ground_and_another_style_wrong(pictures: np.ndarray) -> None:
    picture = scenes.render(scenes.place([(0, None)], "blue", "vivid"), pictures)
    assert judging.grounds_of(picture, "vivid") == ["blue"]
    for style in ("natural", "black and white", "pixel art"):
        other = scenes.stylised(picture, style)
        assert judging.style_of(other, "blue") == (style,)


def test_attention_is_shown_the_parts_where_they_are() -> None:
    reader = reading.Reader(THINGS)
    scene = scenes.Scene(
        (scenes.Placed(2, None, -16, 16, scenes.LARGE), scenes.Placed("ring", "red", 80, 64, scenes.SMALL)), "white"
    )
    ids = reader.ids([f"a {reader.captions.names[2]} and a red {reader.captions.shapes['ring'][0]}"])
    assert ids[0][looking.NOTHING] == reader.tokenizer.token_to_id("[BOS]")
    whole = np.ones((len(THINGS) + len(SHAPES), looking.FINE, looking.FINE))
    whole[2, :, : looking.FINE // 2] = 0  # nothing of it on its left
    wanted = looking.parts_of([scene], ids, whole, reader.first).reshape(-1, 16, 16).numpy()
    assert (wanted[:, :2] == -1).all(), "nothing is above them"
    assert (wanted[:, 2:14, :4] == -1).all(), "what is transparent shows nothing"
    quarters, wholes = wanted[: looking.QUARTERS], wanted[looking.QUARTERS :]

    def part(token: int, number: int) -> tuple[int, int]:
        return divmod(int(ids[0][token]) - reader.first - number * tokens.PATCHES, scenes.ACROSS)

    for y, x in np.ndindex(12, 6):  # of the large one's right half
        at, *others = sorted(quarters[:, 2 + y, 4 + x], reverse=True)
        assert [*others, *wholes[:, 2 + y, 4 + x]] == [looking.NOTHING] * 5
        assert quarters[y % 2 * 2 + x % 2, 2 + y, 4 + x] == at
        assert part(at, 2) == (y // 2, 3 + x // 2)
    for y, x in np.ndindex(6, 6):
        assert (quarters[:, 8 + y, 10 + x] == looking.NOTHING).all()
        for at in wholes[:, 8 + y, 10 + x]:
            assert part(at, len(THINGS) + SHAPES.index("ring")) == (y, x)
    wide = dataclasses.replace(scene, shape=(192, 112))
    shown = looking.parts_of([wide], ids, whole, reader.first)
    assert (shown.reshape(-1, 14, 24).numpy()[:, :, :16] == wanted[:, :14]).all()
    assert (looking.parts_of([None], ids, whole, reader.first) == -1).all(), "an empty caption shows nothing"


@pytest.mark.parametrize("shape", scenes.SIZES_DRAWN)
def test_objects_lie_on_the_grid_and_in_the_picture(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(6)
    for _ in range(400):
        scene = scenes.draw_scene(rng, 3, shape=shape)
        assert scene.shape == shape
        for each in scene.objects:
            assert each.side in (scenes.LARGE, scenes.SMALL)
            assert each.left % (each.side // scenes.ACROSS) == each.top % (each.side // scenes.ACROSS) == 0
            for at, length in ((each.left, shape[0]), (each.top, shape[1])):
                assert -2 * scenes.CELL <= at <= length - each.side + 2 * scenes.CELL


def test_small_objects_count_more_than_large_ones_and_those_more_than_the_ground() -> None:
    def at(extent: str) -> scenes.Scene:
        return scenes.place([("star", "red")], "white", "vivid", position="left", extent=extent)

    small, large = diffusing.emphasis([at("small"), at("large")])[:, 0]
    middle = scenes.SIDE // 8
    assert float(small.mean() + large.mean()) == pytest.approx(2)
    assert small[middle, middle // 2] > 1.3 * large[middle, middle // 2] > 1.5 * small[middle, -1]
    wide = diffusing.emphasis([scenes.Scene((), "white", "none", shape=(176, 96))])
    assert wide.shape == (1, 1, 24, 44)
    assert (wide == 1).all()


def test_the_table_of_the_text_encoder_is_the_same_in_training_and_shipped() -> None:
    words, things = torch.randn(5, 8), torch.randn(7, 8)
    table = reading.Table(words, things)
    ids = torch.tensor([[0, 4, 5, 11]])
    assert torch.equal(table(ids), table.weight[ids])
    table(ids).sum().backward()
    assert table.words.grad[[0, 4]].all()
    assert [name for name, _ in table.named_parameters()] == ["words"]


@pytest.fixture
def nets(tmp_path: Path, pictures: np.ndarray) -> torch.nn.ModuleDict:
    """The untrained networks for the three things, and an untrained autoencoder's checkpoint."""
    torch.save({"step": 0, "parts": {"vae": encoding.new_vae().state_dict()}}, tmp_path / "vae.pt")
    every = reading.with_shapes(finding.Material(THINGS, pictures))
    return diffusing.new_nets(tmp_path, reading.Reader(THINGS), every)


def test_what_ships_draws_as_what_was_trained(nets: torch.nn.ModuleDict) -> None:
    latents, step = torch.randn(2, 4, 32, 32), torch.tensor([500, 20])
    reader = reading.Reader(THINGS)
    ids = reader.ids([f"a {reader.captions.names[1]} on blue", ""])
    diffusing.watch(nets["unet"])
    unet, text = diffusing.shipped(nets)
    with torch.no_grad():
        trained = nets["unet"](latents, step, nets["text"](ids)[0]).sample
        hidden = text(ids)[0]
        assert torch.allclose(hidden, nets["text"](ids)[0], atol=1e-5)
        assert torch.allclose(unet(latents, step, hidden).sample, trained, atol=1e-4)
        other = text(reader.ids([f"a {reader.captions.names[0]} on blue", ""]))[0]
        assert not torch.allclose(other, hidden, atol=1e-2), "and another thing is another picture"


def test_an_attention_that_is_watched_gives_what_it_gives_otherwise() -> None:
    attention = Attention(128, cross_attention_dim=256, heads=looking.HEADS, dim_head=16)
    places, caption = torch.randn(2, 256, 128), torch.randn(2, 144, 256)
    attention.set_processor(AttnProcessor())
    plain = attention(places, encoder_hidden_states=caption)
    processor = looking.Watched()
    processor.watched = True
    attention.set_processor(processor)
    assert torch.allclose(attention(places, encoder_hidden_states=caption), plain, atol=1e-5)
    assert processor.looked.shape == (2, looking.QUARTERS + looking.WHOLE, 256, 144)
    assert torch.allclose(processor.looked.exp().sum(-1), torch.ones(2, 6, 256), atol=1e-4)


def test_looking_at_what_was_wanted_costs_nothing_and_elsewhere_much() -> None:
    wanted = torch.tensor([[[3, looking.NOTHING, -1]] * 6])
    processor = looking.Watched()
    for shift, right in ((0, 1.0), (1, 0.0)):
        logits = torch.full((1, 6, 3, 8), -30.0)
        logits.scatter_(-1, (wanted.clamp(min=0) + shift)[..., None], 0.0)
        processor.looked = logits.log_softmax(-1)
        loss, share = looking.looking_loss([processor], wanted)
        assert share == right
        assert float(loss) == pytest.approx(30.0 * shift, abs=1e-3)


def test_training_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    def run(stop_at: int | None = None) -> tuple[list[int], torch.Tensor]:
        torch.manual_seed(0)
        module = torch.nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        stage, seen = looping.Stage("some", tmp_path, 20, {"module": module, "optimizer": optimizer}), []
        for step, factor in stage.steps():
            if step == stop_at:
                stage.save()
                break
            seen.append(step)
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * factor
            optimizer.zero_grad()
            (module(torch.tensor([[1.0, step]])) ** 2).sum().backward()
            optimizer.step()
        return seen, module.weight.detach().clone()

    whole = run()[1]
    (tmp_path / "some.pt").unlink()
    assert run(stop_at=7)[0] == list(range(7))
    seen, weight = run()
    assert seen == list(range(7, 20))
    assert torch.equal(weight, whole)


def test_the_exported_folder_is_whole_and_keeps_what_is_beside_it(
    tmp_path: Path, nets: torch.nn.ModuleDict, pictures: np.ndarray
) -> None:
    torch.save({"parts": {"average": nets.state_dict()}}, tmp_path / "diffusion.pt")
    target = tmp_path / "out"
    (target / "tokenizer").mkdir(parents=True)
    (target / "tokenizer" / "merges.txt").write_text("of an older model")
    (target / "README.md").write_text("stays")
    training.export(tmp_path, finding.Material(THINGS, pictures), target)
    assert {file.name for file in target.iterdir()} == {
        *training.PARTS, "README.md", "model_index.json", "vocabulary.json",
    }  # fmt: skip
    assert not (target / "tokenizer" / "merges.txt").exists()
    assert str(tmp_path) not in "".join(file.read_text() for file in target.rglob("*.json"))
    pipe = diffusing.StableDiffusionPipeline.from_pretrained(target, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    made = pipe("a cat", num_inference_steps=2, output_type="np").images
    assert made.shape == (1, scenes.SIDE, scenes.SIDE, 3)


@pytest.mark.parametrize(("stages", "missing"), [("text", "vae"), ("vae,diffusion", "text"), ("export", "vae")])
def test_a_stage_says_what_it_goes_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stages: str, missing: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        training.main(["--work", str(tmp_path), "--stages", stages])
    assert caught.value.code == 2
    assert f"goes on from stage {missing}, which has not run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_thing_is_asked_for_by_its_own_plural_though_another_claims_it() -> None:
    things = (finding.Thing("bus", "bus", 5, ("cars",)), finding.Thing("car", "car", 5, ("auto",)))
    leads = tokens.leads(things)
    assert leads["cars"] == (1, True)
    assert leads["buses"] == (0, True)
    assert leads["autos"] == (1, True)


def test_the_vocabulary_holds_what_captions_say(tmp_path: Path) -> None:
    tokens.write_vocabulary(tmp_path / "vocabulary.json", THINGS)
    known = read_vocabulary(tmp_path / "vocabulary.json")
    captions = Captions(THINGS)
    for scene in drawn(300, 11):
        text = captions.of(scene, np.random.default_rng(12), plain=True)
        assert set(known.read(text).unknown) <= set(UNHEEDED), text
    read = known.read("Please draw a photorealistic image of two kitties programming on a red disc")
    assert read.text == "two cats on red circle"
    assert read.unknown == ("photorealistic", "programming")
    assert known.read("a medium-sized cat").unknown == ("medium", "sized"), "there is no such size"


@pytest.mark.slow
def test_the_namer_learns_from_real_renders_and_names_them(tmp_path: Path, pictures: np.ndarray) -> None:
    torch.manual_seed(0)
    namer = naming.train_namer(tmp_path, pictures, 250, 0)
    wanted = np.array([0, 1, 2] * 10)
    made = np.stack([scenes.render(scenes.place([(int(at), None)], "white", "vivid"), pictures) for at in wanted])
    assert np.mean(naming.ranks(namer, made, wanted) == 0) > 0.8
    assert np.mean(naming.ranks(namer, made, np.roll(wanted, 1)) == 0) < 0.2
