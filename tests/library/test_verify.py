"""Every byte of a model against what it should be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hub.library.contents import INDEX
from hub.library.library import Library
from hub.library.orders import Fault, Verified, Verify
from hub.library.places import Places
from hub.library.progress import Note, Progress
from hub.registry import absence
from tests.library.shelves import places_in, shelve, write_shelved

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def places(tmp_path: Path, small_stable_diffusion: Path) -> Places:
    found = places_in(tmp_path)
    write_shelved(tmp_path / "models", shelve(small_stable_diffusion, Path(found.weights_dir)))
    return found


def verify(places: Places, *models: str) -> tuple[Verified, list[Progress | Note]]:
    told: list[Progress | Note] = []
    result = Library(places).perform(Verify(models=list(models) or None), told.append)
    assert isinstance(result, Verified)
    return result, told


def flip(file: Path, at: int) -> None:
    """Changes one bit, and no time that a file has but the one that nobody can set."""
    status = file.stat()
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_whole_model_is_as_it_should_be_and_every_byte_was_read(places: Places) -> None:
    result, told = verify(places, "small")
    assert (result.models, result.faults) == (["small"], [])
    progress = [each for each in told if isinstance(each, Progress)]
    assert progress[-1].all_done == progress[-1].all_total == result.bytes > 100_000
    assert result.files == len({each.file for each in progress})


@pytest.mark.parametrize("name", [UNET, "vae/config.json", INDEX, "tokenizer/tokenizer_config.json"])
def test_one_flipped_bit_is_found_and_the_file_set_aside(places: Places, name: str) -> None:
    snapshot = Path(places.registry().get("small").manifest.path)
    blob = (snapshot / name).resolve()
    flip(blob, blob.stat().st_size // 2)
    result, _ = verify(places)
    assert result.faults == [Fault(model="small", file=name, problem="damaged", quarantined=True)]
    assert blob.with_name(blob.name + ".quarantined").is_file()
    assert absence(places.registry().get("small").manifest), "nobody draws with it, and a pull brings it back"
    assert absence(places.registry().get("builtin").manifest) is None


def test_a_missing_file_is_found(places: Places) -> None:
    snapshot = Path(places.registry().get("small").manifest.path)
    (snapshot / UNET).resolve().unlink()
    (snapshot / "scheduler" / "scheduler_config.json").unlink()
    result, _ = verify(places, "small")
    assert sorted({(fault.file, fault.problem) for fault in result.faults}) == [
        ("scheduler", "missing"),
        (UNET, "missing"),
    ]


def test_a_file_that_another_model_shares_is_set_aside_for_both(
    places: Places, tmp_path: Path, small_stable_diffusion: Path
) -> None:
    again = shelve(small_stable_diffusion, Path(places.weights_dir), revision="f" * 40)
    write_shelved(tmp_path / "models", again, "again")
    blob = (Path(places.registry().get("again").manifest.path) / UNET).resolve()
    flip(blob, 5000)
    result, _ = verify(places, "small", "again")
    assert [fault.model for fault in result.faults if fault.problem == "damaged"] == ["small"]
    assert absence(places.registry().get("again").manifest)


def test_the_owners_own_files_are_compared_with_the_manifest_and_never_touched(
    tmp_path: Path, small_stable_diffusion: Path
) -> None:
    import hashlib
    import shutil

    places = places_in(tmp_path)
    own = tmp_path / "own"
    shutil.copytree(small_stable_diffusion, own)
    table = {
        str(file.relative_to(own)): hashlib.sha256(file.read_bytes()).hexdigest() for file in own.rglob("*.safetensors")
    }
    source = write_shelved(tmp_path / "models", shelve(own, Path(places.weights_dir)))
    lines = [line for line in source.read_text().splitlines() if not line.startswith("source")]
    rows = [f'"{name}" = "{digest}"' for name, digest in table.items()]
    source.write_text("\n".join([*lines, f'path = "{own}"', "[sha256]", *rows]))
    assert verify(places, "small")[0].faults == []
    flip(own / UNET, 4000)
    result, told = verify(places, "small")
    assert result.faults == [Fault(model="small", file=UNET, problem="damaged", quarantined=False)]
    assert (own / UNET).is_file()
    assert any("were read and not compared" in each.message for each in told if isinstance(each, Note))
