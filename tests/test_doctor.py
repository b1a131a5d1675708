"""`hub doctor`: each broken set-up is named exactly, and nothing else is called a problem."""

from __future__ import annotations

import base64
import contextlib
import http.server
import importlib.util
import json
import os
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from filelock import FileLock

from hub.doctor import Finding, examine, read_settings
from hub.engine.probed import Question, Seen, ask
from hub.errors import ConfigurationError
from hub.files import Files
from hub.hub import Hub
from hub.keys import hash_key
from hub.library.layout import Weights
from hub.library.progress import as_bytes
from hub.manifest import repo_folder
from hub.settings import Settings
from tests.conftest import ROOT, Server, run_server, wait_for, write_manifest

COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def seen() -> Seen:
    """What torch really sees here, asked once: an examination would ask each time, which takes seconds."""
    return ask(Question(["auto"], "auto", []))


@pytest.fixture
def model(tmp_path: Path, small_stable_diffusion: Path) -> Path:
    """A model's folder of one's own, with a manifest, `small`, in models/."""
    folder = tmp_path / "model"
    shutil.copytree(small_stable_diffusion, folder)
    write_manifest(tmp_path / "models", folder)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings(folder: Path, **changes: Any) -> Settings:
    models = {"models_dir": folder / "models"} if (folder / "models").is_dir() else {}
    return Settings(**{"cache_dir": folder / "cache", "port": free_port(), **models, **changes})


def wrong(found: list[Finding], status: str = "problem") -> list[tuple[str, str]]:
    return [(finding.area, finding.subject) for finding in found if finding.status == status]


def the_one(found: list[Finding], status: str = "problem") -> Finding:
    chosen = [finding for finding in found if finding.status == status]
    assert len(chosen) == 1, chosen
    assert chosen[0].remedy
    return chosen[0]


def environment(**environ: str) -> dict[str, str]:
    ignored = ("HUB_", "HF_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ignored)}
    return {**{name: value for name, value in clean.items() if not name.lower().endswith("_proxy")}, **environ}


def run(*command: str | Path, cwd: Path, **environ: str) -> tuple[int, list[Finding]]:
    """The command as its user runs it; with --json at its end."""
    done = subprocess.run(
        [*map(str, command), "--json"], cwd=cwd, env=environment(**environ), capture_output=True, timeout=120
    )
    assert b"Traceback" not in done.stderr, done.stderr
    return done.returncode, msgspec.json.decode(done.stdout, type=list[Finding])


DOCTOR = (sys.executable, "-m", "hub", "doctor")


def test_a_healthy_hub_that_runs_has_no_problem_and_its_link_is_followed(server: Server, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    before = sorted(server.cache.rglob("*"))
    variables = {"HUB_CACHE_DIR": str(server.cache), "HUB_PORT": port, "HUB_MODELS_DIR": str(ROOT / "models")}
    done = subprocess.run([*DOCTOR], cwd=tmp_path, env=environment(**variables), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"ok       {server.url}: a link was followed, and led to the hub's own file" in done.stdout
    assert "builtin: all files are there" in done.stdout
    assert "problem " not in done.stdout and done.stdout.rstrip().endswith(" 0 problems.")
    assert not done.stderr
    assert [file for file in sorted(server.cache.rglob("*")) if file not in before] == []
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_are_a_problem_unless_the_first_request_fetches_them(tmp_path: Path, seen: Seen) -> None:
    source = f'source = {{ repo = "org/name", revision = "{COMMIT}" }}'
    write_manifest(tmp_path / "models", tmp_path, path=source)
    told = the_one(examine(settings(tmp_path), {}, seen=seen))
    assert (told.area, told.subject) == ("models", "small")
    assert f"snapshots/{COMMIT}" in told.message
    assert "`hub models pull small`" in (told.remedy or "")
    fetched = examine(settings(tmp_path, auto_pull="wait"), {}, seen=seen)
    assert wrong(fetched) == []
    assert ("models", "small") in wrong(fetched, "warning")
    offline = examine(settings(tmp_path), {}, offline=True, seen=seen)
    words = [finding.remedy for finding in offline if finding.subject == "small"]
    assert words and "hub models import" in str(words[0]) and "docs/air-gap.md" in str(words[0])


def test_a_folder_that_is_not_there_is_named_with_the_field_that_names_it(tmp_path: Path, seen: Seen) -> None:
    write_manifest(tmp_path / "models", tmp_path / "nowhere")
    told = the_one(examine(settings(tmp_path), {}, seen=seen))
    assert told.subject == "small"
    assert told.message.startswith("path: ") and str(tmp_path / "nowhere") in told.message


def test_a_missing_tokenizer_file_is_named(tmp_path: Path, model: Path, seen: Seen) -> None:
    for file in (model / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    found = examine(settings(tmp_path), {}, seen=seen)
    assert set(wrong(found)) == {("models", "small")}
    assert all("tokenizer/" in finding.message for finding in found if finding.status == "problem")


def test_a_missing_shard_is_named(tmp_path: Path, model: Path, seen: Seen) -> None:
    from safetensors.torch import load_file, save_file

    whole = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    shards = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    names = sorted(tensors)
    for shard, part in zip(shards, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in part}, model / "unet" / shard)
    weight_map = {name: shards[index % 2] for index, name in enumerate(names)}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (model / "unet" / f"{whole.name}.index.json").write_text(json.dumps(index))
    whole.unlink()
    assert wrong(examine(settings(tmp_path), {}, seen=seen)) == []
    (model / "unet" / shards[1]).unlink()
    told = the_one(examine(settings(tmp_path), {}, seen=seen))
    assert told.subject == "small" and f"unet/{shards[1]}" in told.message


def test_damaged_weights_are_named(tmp_path: Path, model: Path, seen: Seen) -> None:
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    told = the_one(examine(settings(tmp_path), {}, seen=seen))
    assert told.subject == "small"
    assert told.message.startswith("vae/diffusion_pytorch_model.safetensors is cut off")
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS" in the_one(examine(settings(tmp_path), {}, seen=seen)).message


def test_a_configuration_that_asks_for_code_is_named(tmp_path: Path, model: Path, seen: Seen) -> None:
    file = model / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoModel": "evil.Model"}}))
    told = the_one(examine(settings(tmp_path), {}, seen=seen))
    assert told.subject == "small"
    assert "text_encoder/config.json asks for code of its own (`auto_map`)" in told.message


def test_a_broken_manifest_is_named_and_the_others_are_looked_at(tmp_path: Path, model: Path, seen: Seen) -> None:
    (tmp_path / "models" / "mine.toml").write_text('id = "mine"\nnmae = "x"')
    found = examine(settings(tmp_path), {}, seen=seen)
    told = the_one(found)
    assert (told.area, told.subject) == ("models", "mine.toml")
    assert "nmae" in told.message
    assert {"small", "builtin"} <= {finding.subject for finding in found if finding.status == "ok"}


def test_two_manifests_with_one_name_are_told(tmp_path: Path, model: Path, seen: Seen) -> None:
    shutil.copy(tmp_path / "models" / "small.toml", tmp_path / "models" / "twin.toml")
    told = the_one(examine(settings(tmp_path), {}, seen=seen))
    assert "small.toml has the id 'small', too" in told.message


def test_an_unknown_licence_is_a_warning(tmp_path: Path, model: Path, seen: Seen) -> None:
    write_manifest(tmp_path / "models", model, license='license = "unknown"')
    found = examine(settings(tmp_path), {}, seen=seen)
    assert wrong(found) == []
    assert ("models", "small") in wrong(found, "warning")


def test_components_of_their_own_need_no_others_in_the_folder(tmp_path: Path, model: Path, seen: Seen) -> None:
    shutil.move(model / "unet", tmp_path / "unet")
    places = f'components = {{ unet = "{tmp_path / "unet"}" }}'
    write_manifest(tmp_path / "models", model, components=places)
    assert wrong(examine(settings(tmp_path), {}, seen=seen)) == []
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "components.unet" in the_one(examine(settings(tmp_path), {}, seen=seen)).message


def test_weights_are_looked_for_and_counted_in_the_variant_in_which_they_are_read(
    tmp_path: Path, model: Path, seen: Seen
) -> None:
    shutil.move(model / "unet", tmp_path / "unet")
    plain = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    half = plain.rename(plain.with_suffix(".fp16.safetensors"))
    places = f'components = {{ unet = "{tmp_path / "unet"}" }}'
    write_manifest(tmp_path / "models", model, components=places)
    told = the_one(examine(settings(tmp_path), {}, seen=seen)).message
    assert told == "components.unet has no plain weights, only the variant fp16"
    variant = 'pipeline = { variant = "fp16" }'
    write_manifest(tmp_path / "models", model, components=places, pipeline=variant)
    shutil.copy(half, plain)
    found = examine(settings(tmp_path), {}, seen=seen)
    assert wrong(found) == []
    told = next(each.message for each in found if (each.area, each.subject) == ("models", "small"))
    read = [half, *model.glob("*/*.safetensors")]
    assert told == f"all files are there; {as_bytes(sum(file.stat().st_size for file in read))} of weights"


def test_a_file_from_the_future_tells_of_a_wrong_clock(tmp_path: Path, seen: Seen) -> None:
    file = tmp_path / "cache" / "files" / "x.png"
    file.parent.mkdir(parents=True)
    file.touch()
    os.utime(file, (time.time() + 86400,) * 2)
    told = the_one(examine(settings(tmp_path), {}, seen=seen))
    assert (told.area, told.subject) == ("clock", "cache_dir")
    assert str(file) in told.message
    file.unlink()
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / "hub.db")) as database, database:
        database.execute("CREATE TABLE jobs (created_at)")
        database.execute("INSERT INTO jobs VALUES (?)", (time.time() + 86400,))
    assert the_one(examine(settings(tmp_path), {}, seen=seen)).subject == "hub.db"
    assert [each.name for each in (tmp_path / "cache").iterdir() if each.is_file()] == ["hub.db"]


def test_a_hub_that_does_not_run_is_a_warning_with_its_url(tmp_path: Path, seen: Seen) -> None:
    chosen = settings(tmp_path)
    Files(chosen.cache_dir, 60)
    found = examine(chosen, {}, seen=seen)
    assert wrong(found) == []
    assert wrong(found, "warning") == [("links", f"http://127.0.0.1:{chosen.port}")]
    assert "while it runs" in str(the_one(found, "warning").remedy)
    assert list((chosen.cache_dir / "files").iterdir()) == []


def test_another_hub_at_the_url_is_told_by_its_secret(tmp_path: Path, server: Server, seen: Seen) -> None:
    chosen = settings(tmp_path, port=int(server.url.rpartition(":")[2]))
    told = the_one(examine(chosen, {}, seen=seen))
    assert (told.area, told.subject) == ("links", server.url)
    assert "has no secret yet" in told.message
    assert not chosen.cache_dir.exists(), "nothing was made"
    Files(chosen.cache_dir, 60)
    assert "another secret" in the_one(examine(chosen, {}, seen=seen)).message


def test_a_public_url_that_leads_nowhere_is_a_problem_while_the_hub_runs(server: Server, seen: Seen) -> None:
    port, nowhere = int(server.url.rpartition(":")[2]), f"http://127.0.0.1:{free_port()}"
    told = the_one(examine(Settings(cache_dir=server.cache, port=port, public_url=nowhere), {}, seen=seen))
    assert (told.area, told.subject) == ("links", nowhere)
    assert server.url in told.message
    away = Settings(cache_dir=server.cache, port=port, public_url="http://hub.invalid")
    assert "does not know that name" in the_one(examine(away, {}, seen=seen)).message
    offline = examine(msgspec.structs.replace(away, offline=True), {}, seen=seen)
    assert ("links", "http://hub.invalid") not in wrong(offline)
    assert any("was not asked" in finding.message for finding in offline if finding.area == "links")


@contextlib.contextmanager
def answering(health: bytes) -> Iterator[str]:
    """A server that answers /health so, and nothing else: no hub, or a proxy that lets nothing else through."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/health"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(health if known else b"<h1>nginx</h1>")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_a_proxy_that_cuts_the_path_and_another_program_are_told_apart(tmp_path: Path, seen: Seen) -> None:
    chosen = settings(tmp_path)
    Files(chosen.cache_dir, 60)
    with answering(b'{"status":"ok","version":"0.1.0"}') as url:
        told = the_one(examine(msgspec.structs.replace(chosen, public_url=url), {}, seen=seen))
        assert told.subject == url and "a proxy cuts the path" in told.message
    with answering(b"hello") as url:
        told = the_one(examine(msgspec.structs.replace(chosen, public_url=url), {}, seen=seen))
        assert told.subject == url and "no hub" in told.message


def test_a_settings_file_that_cannot_be_read_is_told_and_the_rest_is_looked_at(tmp_path: Path, seen: Seen) -> None:
    (tmp_path / "hub.toml").write_text('prot = 1\nmodels_dir = "mine"\ncache_dir = "c"\n')
    write_manifest(tmp_path / "mine", tmp_path / "nowhere")
    chosen, found = read_settings(tmp_path / "hub.toml", {"HUB_PORT": "x", "HUB_API_KEYS": "alice:secret"})
    assert wrong(found) == [("settings", "settings")] * 2, "the file, and the variable"
    assert "prot" in found[0].message and found[1].message.startswith("HUB_PORT: 'x'")
    assert (chosen.models_dir, chosen.cache_dir, chosen.port) == (tmp_path / "mine", tmp_path / "c", 8000)
    assert chosen.api_keys == {"alice": hash_key("secret")}
    found += examine(msgspec.structs.replace(chosen, port=free_port()), {}, seen=seen)
    assert wrong(found) == [*[("settings", "settings")] * 2, ("models", "small")]
    (tmp_path / "hub.toml").write_text("port = [")
    assert wrong(read_settings(tmp_path / "hub.toml", {})[1]) == [("settings", "settings")]
    assert wrong(read_settings(tmp_path / "absent.toml", {})[1]) == [("settings", "settings")]


def test_names_that_lead_nowhere_are_told_each(tmp_path: Path, model: Path, seen: Seen) -> None:
    (tmp_path / "models" / "aliases.toml").write_text('"old" = "gone"\n')
    chosen = settings(tmp_path, default_model="smal", aliases={"a": "b", "c": "small"}, host="0.0.0.0")
    found = examine(chosen, {"HUB_MODLES_DIR": "x"}, seen=seen)
    expected = [("settings", "host"), ("settings", "aliases.a"), ("settings", "default_model")]
    assert wrong(found) == expected
    assert "small" in str(next(f.remedy for f in found if f.subject == "default_model"))
    assert {("settings", "HUB_MODLES_DIR"), ("settings", "aliases.toml: old")} <= set(wrong(found, "warning"))


def test_folders_without_which_the_hub_does_not_start_are_problems(tmp_path: Path, seen: Seen) -> None:
    chosen = settings(tmp_path, models_dir=tmp_path / "m", loras_dir=tmp_path / "l")
    assert wrong(examine(chosen, {}, seen=seen)) == [("folders", "models_dir"), ("folders", "loras_dir")]


def test_downloads_that_were_cut_off_are_told_with_their_model(tmp_path: Path, seen: Seen) -> None:
    source = f'source = {{ repo = "org/name", revision = "{COMMIT}" }}'
    write_manifest(tmp_path / "models", tmp_path, path=source)
    chosen = settings(tmp_path)
    blobs = Weights(chosen.weights_folder).blob("org/name", "x").parent
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(b"x" * 3_000_000)
    assert ("folders", "small") not in wrong(examine(chosen, {}, seen=seen), "warning"), "somebody may be at it"
    os.utime(blobs / "abc.incomplete", (time.time() - 15,) * 2)
    locks = Weights(chosen.weights_folder).root / ".locks"
    for lock in (locks / f"{repo_folder('org/name')}.lock", locks / repo_folder("org/name") / "abc.lock"):
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            assert ("folders", "small") not in wrong(examine(chosen, {}, seen=seen), "warning"), "somebody is at it"
    told = next(f for f in examine(chosen, {}, seen=seen) if (f.area, f.subject) == ("folders", "small"))
    assert told.status == "warning" and "1 unfinished" in told.message and "3.0 MB" in told.message
    assert repo_folder("org/name") in told.message
    assert "`hub models pull small`" in str(told.remedy)
    offline = examine(msgspec.structs.replace(chosen, offline=True), {}, seen=seen)
    told = next(f for f in offline if (f.area, f.subject) == ("folders", "small"))
    assert "pull" not in str(told.remedy) and "docs/air-gap.md" in str(told.remedy)


def test_what_would_break_the_offline_promise_is_told(tmp_path: Path, seen: Seen) -> None:
    chosen = settings(
        tmp_path,
        auto_pull="refuse",
        image_hosts=["example.org"],
        neighbours=["ollama:http://192.0.2.7:11434", "vllm:http://127.0.0.1:8001"],
    )
    variables = {"HTTPS_PROXY": "http://proxy", "HF_ENDPOINT": "http://mirror"}
    assert not [finding for finding in examine(chosen, variables, seen=seen) if finding.area == "offline"]
    found = [finding for finding in examine(chosen, variables, offline=True, seen=seen) if finding.area == "offline"]
    warned = [subject for _, subject in wrong(found, "warning")]
    assert warned == ["image_hosts", "HF_ENDPOINT", "HTTPS_PROXY"]
    assert found[0].subject == "guard"
    there = importlib.util.find_spec("hub.offline") is not None
    assert found[0].status == ("ok" if there else "problem"), found[0].message
    assert {("offline", "auto_pull"), ("offline", "neighbours")} <= set(wrong(found))


@pytest.mark.slow
def test_models_are_measured_against_the_memory_that_there_is(tmp_path: Path, model: Path) -> None:
    """A file of two terabytes that takes none on the disk; and a device that is played with eight megabytes."""
    begin = model / "unet" / "diffusion_pytorch_model.safetensors"
    numbers = 1 << 39
    header = json.dumps({"a": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, numbers * 4]}}).encode()
    with begin.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + numbers * 4)
    chosen = settings(tmp_path, device="cpu", device_memory_mb=8)
    found = examine(chosen, {})
    assert wrong(found) == [("memory", "small")]
    assert "2199.0 GB" in the_one(found).message
    assert ("memory", "builtin") in wrong(found, "warning")


@pytest.mark.skipif(Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists(), reason="there is a GPU")
def test_a_gpu_that_is_asked_for_and_not_there_is_told_with_the_reason_and_quiet_tells_only_that(
    tmp_path: Path,
) -> None:
    variables = {"HUB_CACHE_DIR": str(tmp_path / "cache"), "HUB_DEVICE": "cuda,cpu", "HUB_PORT": str(free_port())}
    command = [*DOCTOR, "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(**variables), capture_output=True, text=True)
    heading, told, remedy, links, unfollowed, *_, counts = done.stdout.splitlines()
    assert (done.returncode, heading, links) == (1, "devices", "links"), done.stdout
    assert told.startswith(
        "  problem  cuda:0: HUB_DEVICE=cuda,cpu (`device` in hub.toml) names cuda:0, but torch finds"
    )
    assert "no driver of a GPU is loaded" in told or "nvidia-smi" in told
    assert remedy.startswith("           -> ") and "`device`" in remedy
    assert unfollowed.startswith("  warning  http://127.0.0.1:")
    assert counts.endswith(" ok, 1 warning, 1 problem.")


def test_a_driver_that_torch_does_not_use_is_told_with_the_reason(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.touch(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    if not seen.built_for:
        found = examine(settings(tmp_path), {}, seen=seen)
        assert wrong(found) == []
        words = next(finding.message for finding in found if (finding.area, finding.subject) == ("devices", "auto"))
        assert ("is built for CPUs alone" in words and "driver" in words) or "nvidia-smi is installed" in words
    words = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020)."
    old = msgspec.structs.replace(seen, built_for="CUDA 13.0", warnings=[words], refused={"cuda:0": "HUB_DEVICE=cuda"})
    told = the_one(examine(settings(tmp_path, device="cuda,cpu"), {}, seen=old))
    assert (told.area, told.subject) == ("devices", "cuda:0")
    assert "too old for this torch (CUDA 13.0)" in told.message and "12020" in told.message
    assert "Update the driver" in str(told.remedy)


def test_a_manifest_that_is_pinned_to_a_device_that_is_not_used_is_told(
    tmp_path: Path, model: Path, seen: Seen
) -> None:
    write_manifest(tmp_path / "models", model, device='device = "cuda:77"')
    told = the_one(examine(settings(tmp_path), {}, seen=seen))
    assert (told.area, told.subject) == ("devices", "small")
    assert "pins it to cuda:77" in told.message


@pytest.mark.slow
def test_a_missing_extra_is_named_with_the_model_that_needs_it(tmp_path: Path, model: Path) -> None:
    """In an environment that has everything but the library gguf."""
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("gguf"):
            (lacking / entry.name).symlink_to(entry)
    (tmp_path / "unet.gguf").write_bytes(b"GGUF")
    write_manifest(tmp_path / "models", model, components=f'components = {{ unet = "{tmp_path / "unet.gguf"}" }}')
    variables = {"HUB_CACHE_DIR": str(tmp_path / "c"), "HUB_MODELS_DIR": str(tmp_path / "models")}
    without = (sys.executable, "-S", "-m", "hub", "doctor")
    code, found = run(*without, cwd=tmp_path, PYTHONPATH=f"{ROOT}:{lacking}", **variables)
    told = the_one(found)
    assert (code, told.area, told.subject) == (1, "libraries", "small")
    assert "components.unet needs gguf, and it is not installed" in told.message
    assert "image-hub[quantization]" in str(told.remedy)


NAMESPACES = shutil.which("unshare") and subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
in_a_namespace = pytest.mark.skipif(not NAMESPACES, reason="needs unshare with user namespaces")


def run_mounted(folder: Path, size: str, then: str) -> tuple[int, list[Finding]]:
    """With a file system of its own for the cache, on which something is done first."""
    (folder / "cache").mkdir()
    script = f'mount -t tmpfs -o size={size} tmpfs cache && {then} && exec "$@"'
    command = ("unshare", "-rm", "sh", "-c", script, "sh", *DOCTOR)
    return run(*command, cwd=folder, HUB_CACHE_DIR=str(folder / "cache"), HUB_PORT=str(free_port()))


@in_a_namespace
@pytest.mark.slow
def test_a_full_disk_is_told_once_with_the_folders_on_it(tmp_path: Path) -> None:
    code, found = run_mounted(tmp_path, "2m", "cat /dev/zero > cache/full 2>/dev/null; true")
    told = the_one(found)
    assert (code, told.area) == (1, "folders")
    assert told.subject == "disk of cache_dir, weights_dir, bundles_dir"
    assert "it is full: 0.0 kB free of 2.1 MB" in told.message


@in_a_namespace
@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_told_with_the_reason(tmp_path: Path) -> None:
    code, found = run_mounted(tmp_path, "2m", "mount -o remount,ro cache")
    told = the_one(found)
    assert (code, told.area, told.subject) == (1, "folders", "cache_dir")
    assert "Read-only file system" in told.message


FOLDERS = """
import pathlib, sys, msgspec
from hub.doctor import folders
from hub.doctor.findings import Case
from hub.settings import Settings
settings = Settings(cache_dir=pathlib.Path(sys.argv[1]))
case = Case(settings=settings, models=[], offline=False, key=None, environ={}, seen=None)
print(msgspec.json.encode(list(folders.check(case))).decode())
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(
    ("refused", "problems"),
    [
        pytest.param("error=ENOLCK", [("folders", "cache_dir")], id="nothing"),
        pytest.param("error=EBADF:when=1+3", [], id="folders, as on network shares, where hubs lock a file"),
    ],
)
def test_a_folder_counts_as_lockable_where_a_hub_can_lock_it(
    tmp_path: Path, refused: str, problems: list[tuple[str, str]]
) -> None:
    """strace has flock(2) fail: always, or the first of three times, with which the folder itself is locked."""
    (tmp_path / "cache").mkdir()
    before = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", f"inject=flock:{refused}"]
    command = [*before, sys.executable, "-c", FOLDERS, str(tmp_path / "cache")]
    done = subprocess.run(command, env=environment(PYTHONPATH=str(ROOT)), cwd=tmp_path, capture_output=True, check=True)
    found = msgspec.json.decode(done.stdout, type=list[Finding])
    assert wrong(found) == problems
    assert all(
        "cannot be locked there (No locks available" in each.message for each in found if each.status == "problem"
    )
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_a_running_hub_whose_device_failed_is_told_with_the_reason(tmp_path: Path, seen: Seen) -> None:
    import urllib.error
    import urllib.request

    with run_server(tmp_path, ready=False, HUB_DEVICE="cuda:77", HUB_API_KEYS="alice:secret") as server:

        def failed() -> bool:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5) as answer:
                return json.load(answer)["devices"][0]["status"] == "failed"

        wait_for(failed, server=server)
        chosen = Settings(cache_dir=server.cache, port=int(server.url.rpartition(":")[2]))
        found = examine(chosen, {}, key="secret", seen=seen)
        told = the_one(found)
        assert (told.area, told.subject) == ("engine", "cuda:77")
        assert "HUB_DEVICE=cuda:77" in told.message
        assert wrong(found, "warning") == []
        without = examine(chosen, {}, seen=seen)
        assert wrong(without) == [("engine", "cuda:77")]
        assert wrong(without, "warning") == [("engine", "hub")]
        assert "it wants a key" in the_one(without, "warning").message
        rejected = the_one(examine(chosen, {}, key="another", seen=seen), "warning")
        assert rejected.message.startswith("the key is not accepted, so the engine was not asked")


@pytest.mark.slow
def test_with_a_key_that_is_not_accepted_nothing_is_said_of_what_is_loaded(tmp_path: Path, seen: Seen) -> None:
    with run_server(tmp_path, HUB_API_KEYS="alice:secret") as server:
        chosen = Settings(cache_dir=server.cache, port=int(server.url.rpartition(":")[2]))
        for key, known in (("secret", True), ("another", False), (None, False)):
            found = [each for each in examine(chosen, {}, key=key, seen=seen) if each.area == "engine"]
            words = [each.message for each in found if each.subject != "hub"]
            assert words and all(message.endswith("is loaded") == known for message in words), words
            assert all(message.endswith("is not known") != known for message in words), words


def test_a_broken_index_ends_no_other_check(tmp_path: Path, model: Path, seen: Seen) -> None:
    (model / "model_index.json").write_text("{")
    found = examine(settings(tmp_path), {}, seen=seen)
    told = the_one(found)
    assert told.subject == "small" and "model_index.json is missing or broken" in told.message
    assert {"builtin", "clock"} <= {finding.subject for finding in found if finding.status == "ok"}


def does_not_start(chosen: Settings, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Hub(chosen)


def test_a_neighbour_elsewhere_with_which_an_offline_hub_does_not_start_is_a_problem(
    tmp_path: Path, seen: Seen
) -> None:
    chosen = settings(tmp_path, offline=True, neighbours=["ollama:http://192.0.2.7:11434"])
    does_not_start(chosen, "neighbours: ollama")
    told = the_one(examine(chosen, {}, seen=seen))
    assert (told.area, told.subject) == ("offline", "neighbours")
    assert "does not start" in told.message and "127.0.0.1" in str(told.remedy)


def test_a_file_of_bundle_signers_without_a_usable_key_is_a_problem(tmp_path: Path, seen: Seen) -> None:
    signers = tmp_path / "signers"
    chosen = settings(tmp_path, bundle_signers=signers)
    for content, words in (
        (None, "cannot be read"),
        ("# none\n", "has no key"),
        ("ssh-ed25519 AAAA me\n", "no Ed25519"),
    ):
        if content is not None:
            signers.write_text(content)
        told = the_one(examine(chosen, {}, seen=seen))
        assert (told.area, told.subject) == ("settings", "bundle_signers")
        assert words in told.message and told.message.endswith("every import is refused")
    key = base64.b64encode(b"".join(len(each).to_bytes(4, "big") + each for each in (b"ssh-ed25519", bytes(32))))
    signers.write_text(f"ssh-ed25519 {key.decode()} me\n")
    assert wrong(examine(chosen, {}, seen=seen)) == []


@pytest.mark.slow
def test_a_noise_scheduler_that_diffusers_does_not_have_is_named_with_manifest_and_field(
    tmp_path: Path, model: Path
) -> None:
    """All at once, as the process that knows takes seconds."""
    names = {"wrong": "EulerDiscretScheduler", "other": "UNet2DConditionModel", "right": "EulerDiscreteScheduler"}
    for model_id, name in names.items():
        lines = {"id": f'id = "{model_id}"', "pipeline": f'pipeline = {{ scheduler = "{name}" }}'}
        folder = write_manifest(tmp_path / "models", model, **lines)
        (folder / "small.toml").rename(folder / f"{model_id}.toml")
    found = examine(settings(tmp_path), {})
    told = {finding.subject: finding for finding in found if finding.status == "problem"}
    assert set(told) == {"wrong", "other"} and {finding.area for finding in told.values()} == {"models"}
    words = told["wrong"].message
    assert "EulerDiscretScheduler (`pipeline.scheduler`)" in words and "EulerDiscreteScheduler" in words


def table(names: Iterable[str]) -> str:
    zeros = 64 * "0"
    lines = [f'"{name}" = "{zeros}"' for name in names]
    return f"sha256 = {{ {', '.join(lines)} }}"


def test_a_table_of_hashes_that_leaves_out_weights_or_names_what_is_not_there_is_told(
    tmp_path: Path, model: Path, seen: Seen
) -> None:
    shutil.move(model / "unet", tmp_path / "unet")
    own = f'components = {{ unet = "{tmp_path / "unet"}" }}'
    shutil.copy(model / "vae" / "diffusion_pytorch_model.safetensors", model / "beside.safetensors")
    names = [f"{part.name}/{file.name}" for part in model.iterdir() for file in part.glob("*.safetensors")]
    names.append("../unet/diffusion_pytorch_model.safetensors")
    write_manifest(tmp_path / "models", model, components=own, sha256=table(names))
    assert wrong(examine(settings(tmp_path), {}, seen=seen)) == []
    for left_out in names:
        rest = [name for name in names if name != left_out]
        write_manifest(tmp_path / "models", model, components=own, sha256=table(rest))
        told = the_one(examine(settings(tmp_path), {}, seen=seen))
        assert (told.area, told.subject) == ("models", "small")
        assert told.message.startswith(f"{left_out} is not in the manifest's table sha256")
        assert "sha256sum" in str(told.remedy)
    write_manifest(tmp_path / "models", model, components=own, sha256=table([*names, "unet/gone.safetensors"]))
    told = the_one(examine(settings(tmp_path), {}, seen=seen))
    assert told.message == "unet/gone.safetensors is missing, which the manifest's table sha256 names"


def test_weights_of_a_variant_that_is_not_read_need_no_hash(tmp_path: Path, model: Path, seen: Seen) -> None:
    names = [f"{part.name}/{file.name}" for part in model.iterdir() for file in part.glob("*.safetensors")]
    plain = model / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(plain, plain.with_suffix(".fp16.safetensors"))
    write_manifest(tmp_path / "models", model, sha256=table(names))
    assert wrong(examine(settings(tmp_path), {}, seen=seen)) == []
    write_manifest(tmp_path / "models", model, sha256=table(names), pipeline='pipeline = { variant = "fp16" }')
    told = the_one(examine(settings(tmp_path), {}, seen=seen))
    assert told.message.startswith("unet/diffusion_pytorch_model.fp16.safetensors is not in")


def test_beside_a_single_file_only_weights_that_it_lacks_need_a_hash(tmp_path: Path, model: Path, seen: Seen) -> None:
    from diffusers import DiffusionPipeline
    from safetensors.torch import load_file

    from tests.pipelines.checkpoints import write_ldm

    pipe = DiffusionPipeline.from_pretrained(model, local_files_only=True)
    file = write_ldm(pipe, tmp_path / "one.safetensors")
    lines = {"pipeline": f'pipeline = {{ config = "{model}" }}', "sha256": table(["one.safetensors"])}
    write_manifest(tmp_path / "models", file, **lines)
    assert wrong(examine(settings(tmp_path), {}, seen=seen)) == []
    encoder = [name for name in load_file(file) if name.startswith("cond_stage_model.")]
    write_ldm(pipe, file, **dict.fromkeys(encoder))
    told = the_one(examine(settings(tmp_path), {}, seen=seen))
    assert told.message.startswith("model/text_encoder/model.safetensors is not in the manifest's table sha256")


@pytest.mark.parametrize("dead_link", [True, False])
def test_a_dead_link_or_a_file_in_place_of_the_folder_of_pictures_is_a_problem(
    tmp_path: Path, seen: Seen, dead_link: bool
) -> None:
    chosen = settings(tmp_path)
    files = chosen.cache_dir / "files"
    files.parent.mkdir()
    if dead_link:
        files.symlink_to(tmp_path / "gone")
    else:
        files.touch()
    does_not_start(chosen, "cannot be used")
    told = the_one(examine(chosen, {}, seen=seen))
    assert (told.area, told.subject) == ("folders", "cache_dir")
    assert (
        told.message
        == f"{files} is {'a link that leads nowhere' if dead_link else 'no folder'}, and the hub does not start"
    )
    files.unlink()
    (tmp_path / "elsewhere").mkdir()
    files.symlink_to(tmp_path / "elsewhere")
    assert wrong(examine(chosen, {}, seen=seen)) == []


def test_every_variable_that_is_wrong_is_named(tmp_path: Path) -> None:
    variables = {
        "HUB_PORT": "x",
        "HUB_KEEP_ALIVE": "long",
        "HUB_PUBLIC_URL": "ftp://x",
        "HUB_FILE_TTL": "60",
        "HUB_API_KEYS": "alice:secret",
        "HUB_ADMIN_KEYS": "alice",
    }
    empty = tmp_path / "hub.toml"
    empty.touch()
    chosen, found = read_settings(empty, dict(variables))
    assert [each.message.partition(":")[0] for each in found] == ["HUB_PORT", "HUB_KEEP_ALIVE", "HUB_PUBLIC_URL"]
    assert wrong(found) == [("settings", "settings")] * 3
    assert (chosen.file_ttl, chosen.admin_keys) == (60, ["alice"])
    told = read_settings(empty, {**variables, "HUB_ADMIN_KEYS": "bob"})[1]
    assert [each.message.partition(":")[0] for each in told][-1] == "HUB_ADMIN_KEYS"


def test_a_model_that_is_refused_is_told_in_the_refusal_s_own_words(tmp_path: Path, model: Path, seen: Seen) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "unet": ["evil", "Model"]}))
    told = the_one(examine(settings(tmp_path), {}, seen=seen))
    assert told.message.startswith("model_index.json has 'unet' of a class that neither diffusers nor transformers has")


def test_a_remedy_offline_is_a_bundle_and_no_pull(tmp_path: Path, small_stable_diffusion: Path, seen: Seen) -> None:
    source = f'source = {{ repo = "org/name", revision = "{COMMIT}" }}'
    write_manifest(tmp_path / "models", tmp_path, path=source)
    chosen = settings(tmp_path)
    snapshot = chosen.weights_folder / repo_folder("org/name") / "snapshots" / COMMIT
    shutil.copytree(small_stable_diffusion, snapshot)
    (snapshot / "unet" / "config.json").unlink()
    assert "`hub models pull small`" in str(the_one(examine(chosen, {}, seen=seen)).remedy)
    remedy = str(the_one(examine(chosen, {}, offline=True, seen=seen)).remedy)
    assert "`hub models import`" in remedy and "docs/air-gap.md" in remedy and "pull small" not in remedy
