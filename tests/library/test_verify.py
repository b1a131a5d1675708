"""Every byte of a model against what it should be."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from hub.library.contents import INDEX
from hub.library.library import Library
from hub.library.orders import Fault, Verified, Verify
from hub.library.places import Places
from hub.library.progress import Note, Progress
from hub.pipelines import Unsupported
from hub.pipelines.weights import weights_hash
from hub.registry import absence
from tests.library.shelves import in_folder, places_in, shelve, write_shelved

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


def test_a_blob_that_was_exchanged_while_it_was_read_stays(places: Places) -> None:
    """Another process mends it, as a pull does, between reading and setting aside."""
    snapshot = Path(places.registry().get("small").manifest.path)
    blob = (snapshot / UNET).resolve()
    good = blob.read_bytes()
    flip(blob, 5000)

    def mend(event: Progress | Note) -> None:
        if isinstance(event, Progress) and event.file == UNET and event.done == event.total:
            fresh = blob.with_name("fresh")
            fresh.write_bytes(good)
            fresh.replace(blob)

    result = Library(places).perform(Verify(models=["small"]), mend)
    assert isinstance(result, Verified)
    assert result.faults == []
    assert blob.read_bytes() == good
    assert absence(places.registry().get("small").manifest) is None


def test_a_repository_that_is_being_changed_is_waited_for(places: Places) -> None:
    blob = (Path(places.registry().get("small").manifest.path) / UNET).resolve()
    flip(blob, 5000)
    aside = blob.with_name(blob.name + ".quarantined")
    told: list[str] = []
    lock = FileLock(places.weights.lock_file("models--org--small"))
    Path(lock.lock_file).parent.mkdir()
    lock.acquire()
    released = threading.Event()

    def hear(event: Progress | Note) -> None:
        if isinstance(event, Note):
            told.append(event.message)
            assert not aside.exists()
            released.set()

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(Library(places).perform, Verify(models=["small"]), hear)
        assert released.wait(60)
        lock.release()
        result = work.result(60)
    assert isinstance(result, Verified)
    assert [fault.quarantined for fault in result.faults] == [True]
    assert (told, aside.is_file()) == (["Another process works on org/small; waiting for it."], True)


def test_a_table_that_is_wrong_takes_nothing_from_others(places: Places, tmp_path: Path) -> None:
    source = places.registry().get("small").manifest.source
    assert source is not None
    write_shelved(tmp_path / "models", source, "wrong", sha256=f'[sha256]\n"{UNET}" = "{"0" * 64}"')
    result, _ = verify(places, "wrong", "small")
    assert result.faults == [Fault(model="wrong", file=UNET, problem="damaged", quarantined=False)]
    assert absence(places.registry().get("small").manifest) is None
    assert verify(places, "small")[0].faults == []


def test_files_of_several_models_are_counted_apart(
    places: Places, tmp_path: Path, small_stable_diffusion: Path
) -> None:
    again = shelve(small_stable_diffusion, Path(places.weights_dir), repo="org/again")
    write_shelved(tmp_path / "models", again, "again")
    result, told = verify(places, "small", "again")
    progress = [each for each in told if isinstance(each, Progress)]
    assert {f"small: {UNET}", f"again: {UNET}"} <= {each.file for each in progress}
    assert result.files == len({each.file for each in progress})
    assert all(each.done <= each.total for each in progress)
    assert progress[-1].all_done == progress[-1].all_total


def test_what_is_damaged_and_has_kept_its_times_is_not_loaded_after_it_was_found(
    tmp_path: Path, small_stable_diffusion: Path
) -> None:
    """As after a fault of the disk: the bytes are others, and nothing says that somebody has written them."""
    places, own = places_in(tmp_path), tmp_path / "own"
    shutil.copytree(small_stable_diffusion, own)
    table = {
        str(file.relative_to(own)): hashlib.sha256(file.read_bytes()).hexdigest() for file in own.rglob("*.safetensors")
    }
    source = write_shelved(tmp_path / "models", shelve(own, Path(places.weights_dir)))
    in_folder(source, own, "[sha256]", *(f'"{name}" = "{digest}"' for name, digest in table.items()))
    hashes = Path(places.cache_dir) / "weights.json"
    weights_hash([str(own)], hashes, table)
    before = set(json.loads(hashes.read_bytes()))
    flip(own / UNET, 4000)
    status = (own / UNET).stat()
    kept = {
        f"{own / UNET} {status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
        if key.startswith(f"{own / UNET} ")
        else key: digest
        for key, digest in json.loads(hashes.read_bytes()).items()
    }
    assert len(set(kept) - before) == 1
    hashes.write_text(json.dumps(kept))
    weights_hash([str(own)], hashes, table)  # it cannot know
    assert verify(places, "small")[0].faults == [Fault(model="small", file=UNET, problem="damaged", quarantined=False)]
    with pytest.raises(Unsupported, match=f"{UNET} is not what the manifest's table sha256 says"):
        weights_hash([str(own)], hashes, table)


def test_a_damaged_model_card_is_set_aside_and_the_model_goes_on(tmp_path: Path, small_stable_diffusion: Path) -> None:
    import shutil

    own = tmp_path / "own"
    shutil.copytree(small_stable_diffusion, own)
    (own / "README.md").write_text("# A model\n" * 20)
    places = places_in(tmp_path)
    write_shelved(tmp_path / "models", shelve(own, Path(places.weights_dir)))
    card = Path(places.registry().get("small").manifest.path) / "README.md"
    flip(card.resolve(), 30)
    result, _ = verify(places, "small")
    assert result.faults == [Fault(model="small", file="README.md", problem="damaged", quarantined=True)]
    assert absence(places.registry().get("small").manifest) is None
