"""Several processes at one library, and folders that go or cannot be written: nothing is lost, and words are told."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from hub.errors import HubError, PullFailed, StorageFull
from hub.library.library import Library
from hub.library.orders import Alias, Clean, Order, Pull, Remove, Verify
from hub.library.places import Places
from hub.library.progress import Note, Progress, silent
from hub.library.writing import told
from tests.hugging_face import StandIn
from tests.library.shelves import everything, places_in, shelve, write_shelved

ORDERS = """
import sys, msgspec
from hub.library.library import Library
from hub.library.orders import Order
from hub.library.places import Places
from hub.library.progress import silent
places = msgspec.json.decode(sys.argv[1], type=Places)
print("ready", flush=True)
sys.stdin.readline()
for line in sys.stdin.read().splitlines():
    Library(places).perform(msgspec.json.decode(line, type=Order), silent)
"""


@pytest.fixture
def places(tmp_path: Path, small_stable_diffusion: Path) -> Places:
    found = places_in(tmp_path)
    write_shelved(tmp_path / "models", shelve(small_stable_diffusion, Path(found.weights_dir)))
    return found


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, small_stable_diffusion: Path) -> Iterator[StandIn]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with StandIn() as stand_in:
        stand_in.add("org/pulled", small_stable_diffusion)
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in
    huggingface_hub.close_session()


def at_once(places: Places, *orders: list[Order]) -> list[int]:
    """Each list by a process of its own, which all begin at the same moment; their exit codes."""
    import msgspec

    command = [sys.executable, "-c", ORDERS, msgspec.json.encode(places).decode()]
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
            )
            for _ in orders
        ]
        for each in running:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each, work in zip(running, orders, strict=True):
            assert each.stdin is not None
            each.stdin.write("\n" + "".join(msgspec.json.encode(order).decode() + "\n" for order in work))
            each.stdin.close()
        return [each.wait(120) for each in running]


def test_of_aliases_that_are_given_at_once_none_is_lost(places: Places) -> None:
    names = [[f"alias-{number}-{each}" for each in range(4)] for number in range(6)]
    codes = at_once(places, *([Alias(name=name, target="small") for name in some] for some in names))
    assert codes == [0] * 6
    known = tomllib.loads((Path(places.owned) / "aliases.toml").read_text())
    assert set(known) == {name for some in names for name in some}


def test_a_pull_and_a_model_that_is_removed_at_once_leave_all_or_nothing(there: StandIn, places: Places) -> None:
    from hub.registry import absence

    Library(places).perform(Pull(repo="org/pulled"), silent)
    pulls: list[Order] = [Pull(repo="org/pulled"), Pull(repo="org/pulled")]
    at_once(places, pulls, [Remove(model="org/pulled")], [Clean()])
    known = {listed.id: listed.manifest for listed in places.registry()}
    if "org/pulled" in known:
        assert absence(known["org/pulled"]) is None
        result = Library(places).perform(Verify(models=["org/pulled"]), silent)
        assert getattr(result, "faults", None) == []


@pytest.mark.parametrize("what", ["cache", "a blob", "the snapshot's repository"])
def test_what_is_deleted_while_it_comes_is_a_pull_that_failed_and_no_model(
    there: StandIn, places: Places, what: str
) -> None:
    repository = Path(places.weights_dir) / "models--org--pulled"

    def hear(event: Progress | Note) -> None:
        if not isinstance(event, Progress) or event.done < event.total or not event.file.endswith("safetensors"):
            return
        if what == "cache":
            shutil.rmtree(places.cache_dir, ignore_errors=True)
        elif what == "a blob":
            next(blob for blob in (repository / "blobs").iterdir() if len(blob.name) == 40).unlink()
        else:
            shutil.rmtree(repository, ignore_errors=True)

    with pytest.raises(PullFailed) as failed:
        Library(places).perform(Pull(repo="org/pulled"), hear)
    assert (failed.value.status, failed.value.code) == (502, "pull_failed")
    assert str(places.cache_dir) not in failed.value.message
    assert [file.name for file in Path(places.owned).glob("*.toml")] == ["small.toml"]
    Library(places).perform(Pull(repo="org/pulled"), silent)
    assert places.registry().get("org/pulled")


@pytest.mark.parametrize("order", [Remove(model="small"), Alias(name="nice", target="small")], ids=["rm", "alias"])
def test_a_folder_of_models_that_cannot_be_written_is_told_in_words(places: Places, order: Order) -> None:
    (Path(places.owned) / ".models.lock").mkdir()
    before = everything(Path(places.cache_dir))
    with pytest.raises(HubError, match="The folder of models or of weights cannot be written: Is a directory") as error:
        Library(places).perform(order, silent)
    assert (error.value.status, str(places.owned) in error.value.message) == (500, False)
    assert everything(Path(places.cache_dir)) == before
    assert places.registry().get("small")


@pytest.mark.parametrize("order", [Remove(model="small"), Clean()], ids=["rm", "gc"])
def test_a_folder_of_weights_that_cannot_be_written_is_told_in_words(places: Places, order: Order) -> None:
    (Path(places.weights_dir) / ".locks").write_text("")
    notes: list[str] = []
    with pytest.raises(HubError, match=r"cannot be written: (File exists|Not a directory)"):
        Library(places).perform(order, lambda event: notes.append(str(event)))
    assert places.registry().get("small")


def test_only_errors_of_the_file_system_become_words() -> None:
    with pytest.raises(StorageFull, match="its disk has no room"), told("The folder"):
        raise OSError(28, "No space left on device", "/secret/place")
    with (
        pytest.raises(
            HubError, match=r"^The folder cannot be written: Permission denied\. Check the folder and its owner\.$"
        ),
        told("The folder"),
    ):
        raise PermissionError(13, "Permission denied", "/secret/place")
    with pytest.raises(BrokenPipeError), told("The folder"):  # of whoever is reported to
        raise BrokenPipeError
    with pytest.raises(ValueError, match="x"), told("The folder"):
        raise ValueError("x")
