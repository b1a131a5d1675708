"""The command line as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hub.keys import hash_key
from hub.receipt import receipt_in
from tests.conftest import Server, run_server, status, wait_for, write_manifest
from tests.families.loras import ATTENTION, save, tensors


def hub(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HUB_")}
    return subprocess.run(
        [sys.executable, "-m", "hub", *arguments],
        cwd=cwd,
        env={**environment, "HUB_CACHE_DIR": str(cwd / "cache"), **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("serve",),
        ("generate",),
        ("replay",),
        ("models", "list"),
        ("loras", "list"),
        ("keys", "new"),
        ("engine", "load"),
        ("doctor",),
    ],
)
def test_every_command_has_help(tmp_path: Path, command: tuple[str, ...]) -> None:
    result = hub(*command, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "Usage:" in result.stdout


def test_generate_writes_pictures_and_says_their_seeds(tmp_path: Path) -> None:
    arguments = ("generate", "a red circle", "--size", "96x64", "-n", "2", "--seed", "5", "--steps", "1", "-o", "x.png")
    result = hub(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "x-1.png (seed 5)" in result.stdout
    assert "x-2.png (seed 6)" in result.stdout
    assert "Warning: size:" in result.stderr
    with Image.open(tmp_path / "x-2.png") as drawn:
        assert drawn.size == (96, 64)


def test_generate_tells_errors_plainly(tmp_path: Path) -> None:
    result = hub("generate", "a", "-m", "nope", cwd=tmp_path)
    assert result.returncode == 1
    assert "'nope' does not exist" in result.stderr
    assert "`hub models list`" in result.stderr
    assert "/v1/" not in result.stderr
    assert "Traceback" not in result.stderr
    assert hub("generate", "a", "--size", "big", cwd=tmp_path).returncode == 2


def test_serve_refuses_a_public_address_without_a_key(tmp_path: Path) -> None:
    result = hub("serve", "--host", "0.0.0.0", cwd=tmp_path)
    assert result.returncode == 1
    assert "no API key is set" in result.stderr
    assert "hub keys new" in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "prot"),
        ('port = "8000"', "port"),
        ("port = 70000", "port"),
        ('device = "tpu"', "device"),
        ("[api_keys]\nalice = ''", "api_keys.alice"),
        ('public_url = "ftp://x"', "public_url"),
        ('[aliases]\n"dall-e-3" = "nope"', "aliases.dall-e-3"),
        ('models_dir = "/nowhere/at/all"', "models_dir"),
        ("port = [", "hub.toml"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "hub.toml").write_text(text)
    result = hub("serve", "--port", "0", cwd=tmp_path)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bad_manifest_stops_the_start_and_names_file_and_field(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.toml").write_text('id = "mine"\nnmae = "x"')
    result = hub("serve", "--port", "0", cwd=tmp_path, HUB_MODELS_DIR=str(tmp_path / "m"))
    assert result.returncode == 1
    assert "mine.toml" in result.stderr
    assert "nmae" in result.stderr


def test_serve_on_port_0_says_where_it_listens(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HUB_")}
    server = subprocess.Popen(
        [sys.executable, "-m", "hub", "serve", "--port", "0"],
        cwd=tmp_path,
        env={**environment, "HUB_CACHE_DIR": str(tmp_path / "cache")},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    with server.stderr:
        url = next(word for word in server.stderr.readline().split() if word.startswith("http://"))
        wait_for(lambda: status(f"{url}/health") == 200)
        server.terminate()
        server.stderr.read()
    server.wait(20)


def test_the_help_says_where_settings_are_read_from(tmp_path: Path) -> None:
    words = " ".join(hub("serve", "--help", cwd=tmp_path).stdout.split())
    assert "(default: HUB_CONFIG, else ./hub.toml, else hub.toml in your configuration folder" in words


@pytest.mark.slow
def test_a_device_that_is_not_there_is_told_by_ready_and_in_the_log(tmp_path: Path) -> None:
    with run_server(tmp_path, ready=False, HUB_DEVICE="cuda:77") as server:
        told: list[dict[str, Any]] = []

        def failed() -> bool:
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{server.url}/ready", timeout=5)
            with caught.value as answer:
                told.append(json.load(answer))
                return answer.code == 503 and told[-1]["status"] == "failed"

        wait_for(failed, server=server)
        devices = [{"device": "cuda:77", "status": "starting"}]
        assert told[0] == {"status": "starting", "version": told[0]["version"], "devices": devices}
        assert "HUB_DEVICE=cuda:77" in told[-1]["reason"]
        assert told[-1]["devices"] == [{"device": "cuda:77", "status": "failed", "reason": told[-1]["reason"]}]
        assert told[-1]["reason"] in server.log.read_text()
        assert "Traceback" not in server.log.read_text()


def test_a_port_in_use_is_told_plainly(tmp_path: Path, server: Server) -> None:
    result = hub("serve", "--port", server.url.rpartition(":")[2], cwd=tmp_path)
    assert result.returncode != 0
    assert "in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_default_model_stops_the_start(tmp_path: Path) -> None:
    result = hub("serve", "--port", "0", cwd=tmp_path, HUB_DEFAULT_MODEL="dall-e-9")
    assert result.returncode == 1
    assert "default_model" in result.stderr


@pytest.mark.slow
def test_generate_edits_a_part_of_a_picture_and_writes_the_format_that_the_ending_names(tmp_path: Path) -> None:
    Image.new("RGB", (96, 64), (255, 0, 0)).save(tmp_path / "source.png")
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (48, 0, 96, 64))
    mask.save(tmp_path / "mask.png")
    edit = ("generate", "a blue square on a blue background", "--image", "source.png", "--mask", "mask.png")
    result = hub(*edit, "--steps", "2", "--seed", "1", "-o", "edited.webp", cwd=tmp_path)
    assert "edited.webp (seed 1)" in result.stdout, result.stderr
    with Image.open(tmp_path / "edited.webp") as edited:
        assert (edited.format, edited.size) == ("WEBP", (96, 64))
        red, _, blue = edited.convert("RGB").getpixel((10, 32))
        assert (red > 240, blue < 15) == (True, True), "outside of the mask it is as it was, but for WebP's loss"


def test_generate_checks_its_output_before_it_works(tmp_path: Path) -> None:
    unknown = hub("generate", "a", "-o", "x.gif", cwd=tmp_path)
    assert (unknown.returncode, ".webp" in unknown.stderr) == (2, True)
    assert hub("generate", "a", "-o", "nowhere/x.png", cwd=tmp_path).returncode == 2


def test_models_list_shows_models_and_aliases(tmp_path: Path) -> None:
    result = hub("models", "list", cwd=tmp_path)
    assert result.stdout.startswith("builtin  ")
    assert "dall-e-3" in result.stdout


ROUTE = """
id = "either"
name = "Either"
description = "Here or there."
remote = false
targets = [{ model = "builtin", max_waiting = 4 }, { model = "openai/gpt-image-2", keys = ["alice"] }]
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder to work in, and the environment of a hub with remote models and routes."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "models").mkdir()
    (folder / "models" / "either.toml").write_text(ROUTE)
    (folder / "hub.toml").write_text('[aliases]\nx = ["builtin", "openai/gpt-image-2"]\ny = "openai/gpt-image-2"')
    environ = {"HUB_MODELS_DIR": str(folder / "models"), "HUB_REMOTE_MODELS": "openai/gpt-image-2"}
    return folder, {**environ, "OPENAI_API_KEY": "sk-canary-5"}


def test_models_list_shows_remote_models_with_their_keys_and_routes_with_their_targets(
    elsewhere: tuple[Path, dict[str, str]],
) -> None:
    folder, environ = elsewhere
    told = hub("models", "list", cwd=folder, **environ).stdout
    assert "remote, openai: gpt-image-2; with a key; leaves this machine" in told
    assert "route, local-first: builtin, openai/gpt-image-2; never leaves this machine" in told
    done = hub("models", "list", "--json", cwd=folder, **{**environ, "OPENAI_API_KEY": ""})
    found = {model["id"]: model for model in json.loads(done.stdout)}
    assert (found["builtin"]["origin"], found["either"]["origin"]) == ("built-in", "route")
    assert found["x"]["targets"] == ["builtin", "openai/gpt-image-2"] and found["x"]["remote"] is True
    there = found["openai/gpt-image-2"]
    assert (there["origin"], there["provider"], there["key"], there["aliases"]) == (
        "remote",
        "openai",
        "missing",
        ["y"],
    )
    assert "canary" not in told + done.stdout + done.stderr


def test_models_show_tells_of_a_remote_model_and_of_a_route(elsewhere: tuple[Path, dict[str, str]]) -> None:
    folder, environ = elsewhere
    told = hub("models", "show", "y", cwd=folder, **environ).stdout
    assert told.startswith("openai/gpt-image-2 ") and "pictures at most" in told and "canary" not in told
    told = hub("models", "show", "either", cwd=folder, **environ).stdout
    assert "target  builtin; while at most 4 requests wait" in told
    assert "target  openai/gpt-image-2; for the keys alice" in told
    assert f"manifest  {folder / 'models' / 'either.toml'}" in told
    assert json.loads(hub("models", "show", "x", "--json", cwd=folder, **environ).stdout)["origin"] == "route"


@pytest.mark.parametrize("command", [("rm",), ("verify",), ("export", "-o", "x.hubmodels")])
def test_what_has_no_weights_here_cannot_be_removed_verified_or_carried(
    elsewhere: tuple[Path, dict[str, str]], command: tuple[str, ...]
) -> None:
    folder, environ = elsewhere
    for model, words in (("openai/gpt-image-2", "is a remote provider's"), ("either", "names other models")):
        done = hub("models", *command, model, cwd=folder, **environ)
        assert done.returncode == 1
        assert f"'{model}' {words}: there are no weights of it on this machine." in done.stderr


@pytest.mark.slow
def test_generate_takes_loras_by_name_and_weight_and_replay_tells_what_became_of_them(
    tmp_path: Path, small_stable_diffusion: Path
) -> None:
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(small_stable_diffusion, local_files_only=True)
    models = write_manifest(tmp_path / "models", small_stable_diffusion)
    save(models / "loras", "styles/ink", tensors(pipeline, {"unet": ATTENTION}, 1))
    environ = {"HUB_MODELS_DIR": str(models), "HUB_DEVICE": "cpu"}
    listed = hub("loras", "list", cwd=tmp_path, **environ)
    assert listed.stdout.split()[0] == "styles/ink"
    ask = ("generate", "a", "-m", "small", "--size", "64x64", "--seed", "5", "--lora")
    result = hub(*ask, "styles/ink:-0.5", "-o", "x.png", cwd=tmp_path, **environ)
    assert result.returncode == 0, result.stderr
    (drawn,) = receipt_in((tmp_path / "x.png").read_bytes()).loras
    assert (drawn.name, drawn.weight) == ("styles/ink", -0.5)
    again = hub("replay", "x.png", cwd=tmp_path, **environ)
    assert (again.returncode, again.stderr.count("Changed")) == (0, 0), again.stderr
    save(models / "loras", "styles/ink", tensors(pipeline, {"unet": ATTENTION}, 2))
    again = hub("replay", "x.png", cwd=tmp_path, **environ)
    assert again.returncode == 1
    assert f"Changed: loras: styles/ink:-0.5 ({drawn.sha256[:10]}) then, styles/ink:-0.5 (" in again.stderr
    unknown = hub(*ask, "styles/in", cwd=tmp_path, **environ)
    assert unknown.returncode == 1
    assert "Near names: styles/ink. `hub loras list` shows all." in unknown.stderr
    for text in ("styles/ink:11", "styles/ink:much", "styles/ink:nan"):
        assert hub(*ask, text, cwd=tmp_path, **environ).returncode == 2, text


def test_loras_list_says_where_there_are_none(tmp_path: Path) -> None:
    result = hub("loras", "list", cwd=tmp_path, HUB_LORAS_DIR=str(tmp_path))
    assert (result.returncode, result.stdout) == (0, "")
    assert f"There are none in {tmp_path}" in result.stderr
    assert "loras_dir" in hub("loras", "list", cwd=tmp_path, HUB_LORAS_DIR="nowhere").stderr


def test_a_new_key_is_shown_once_with_the_hash_that_settings_take(tmp_path: Path) -> None:
    lines = hub("keys", "new", "alice", cwd=tmp_path).stdout
    key = next(word for word in lines.split() if word.startswith("sk-"))
    assert f'"alice" = "{hash_key(key)}"' in lines
    assert hub("keys", "new", "my phone", cwd=tmp_path).returncode == 2


def test_the_log_never_holds_urls_that_were_fetched(tmp_path: Path) -> None:
    script = (
        "import logging; from hub.cli.common import settings_from; settings_from(None, log_level='debug'); "
        "print([logging.getLogger(name).isEnabledFor(logging.INFO) for name in ('httpx2', 'httpcore2')])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[False, False]"


def test_a_picture_is_made_again_from_its_file(tmp_path: Path) -> None:
    made = hub(
        "generate", "a red circle", "--size", "96x64", "--seed", "5", "--steps", "2", "-o", "x.png", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    again = hub("replay", "x.png", "-o", "again.png", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "The same picture, pixel by pixel." in again.stdout
    with Image.open(tmp_path / "x.png") as one, Image.open(tmp_path / "again.png") as other:
        assert one.tobytes() == other.tobytes()
        text = PngInfo()
        for keyword, words in one.text.items():  # type: ignore[attr-defined]
            text.add_itxt(keyword, words.replace('"torch":"', '"torch":"0.'))
        spot = one.copy()
    spot.paste((0, 0, 0), (0, 0, 10, 10))
    spot.save(tmp_path / "spot.png", pnginfo=text)
    changed = hub("replay", "spot.png", cwd=tmp_path)
    assert changed.returncode == 1
    assert "Largest difference 2" in changed.stdout and "of all pixels differ" in changed.stdout
    assert "Changed: torch: 0." in changed.stderr


def test_where_a_picture_cannot_be_put_is_told_before_it_is_drawn(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    for output, words in (("absent/y.png", "there is no folder"), ("y.gif", "end in .png")):
        told = hub("replay", "x.png", "-o", output, cwd=tmp_path)
        assert told.returncode == 2 and words in told.stderr


def test_what_cannot_be_made_again_is_told_plainly(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, words in (("other.png", "it has no receipt"), ("text.png", "it is not a PNG that can be read")):
        told = hub("replay", name, cwd=tmp_path)
        assert told.returncode == 1
        assert words in told.stderr and "Traceback" not in told.stderr
