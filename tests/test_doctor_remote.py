"""`hub doctor` on remote models and routes: each mistake is named, with what to do, and nobody is asked."""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hub.cli import main
from hub.doctor import models, remote
from hub.doctor import settings as settings_check
from hub.doctor.findings import Case, Finding
from hub.engine.probed import Seen
from hub.manifest import ModelManifest
from hub.settings import Settings

TODAY = dt.datetime.now(dt.UTC).date()
REMOTE = """
id = "{id}"
name = "Painter"
description = ""
provider = "{provider}"
tasks = ["text-to-image"]

[remote]
model = "painter"
{remote}

[prices]
{prices}
"""
ROUTE = """
id = "{id}"
name = "Route"
description = ""
targets = [{targets}]
"""
KEY = {"OPENAI_API_KEY": "sk-canary-7"}


def manifest(folder: Path, name: str = "openai/painter", provider: str = "openai", **sections: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = REMOTE.format(id=name, provider=provider, **{"remote": "", "prices": "", **sections})
    (folder / f"{name.replace('/', '-')}.toml").write_text(text)


def route(folder: Path, *targets: str, name: str = "either") -> None:
    folder.mkdir(exist_ok=True)
    listed = ", ".join(f"{{ {target} }}" for target in targets)
    (folder / f"{name}.toml").write_text(ROUTE.format(id=name, targets=listed))


def look(tmp_path: Path, environ: dict[str, str] = KEY, *, offline: bool = False, **changes: Any) -> list[Finding]:
    """All that is said of models, remote ones and names."""
    chosen = Settings(cache_dir=tmp_path / "cache", models_dir=tmp_path / "models", **changes)
    found: list[Finding] = []
    manifests = list(models.read(chosen, found, offline=offline))
    case = Case(
        settings=chosen,
        models=[each for each in manifests if isinstance(each, ModelManifest)],
        elsewhere=[each for each in manifests if not isinstance(each, ModelManifest)],
        offline=offline,
        key=None,
        environ=environ,
        seen=lambda: pytest.fail("nobody needs torch here"),
    )
    return [*found, *settings_check._names(case), *remote.check(case)]


def told(found: list[Finding], status: str) -> Finding:
    assert "sk-canary-7" not in str(found)
    chosen = [each for each in found if each.status == status]
    assert len(chosen) == 1, chosen
    assert chosen[0].remedy
    return chosen[0]


def silent(found: list[Finding]) -> None:
    assert [each for each in found if each.status != "ok"] == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_without_remote_models_nothing_is_said_of_them(tmp_path: Path, folder: Path) -> None:
    assert [each for each in look(tmp_path) if each.area == "remote"] == []


def test_a_model_with_a_key_a_caller_and_prices_is_as_it_should_be(tmp_path: Path, folder: Path) -> None:
    manifest(folder, prices=f"as_of = {TODAY}\nmegapixel = 0.1")
    found = look(tmp_path, remote_keys=["*"], budgets={"*": 5})
    silent(found)
    assert {each.subject for each in found} >= {"openai", "remote_keys"}


def test_ready_made_models_count_where_they_are_named_and_a_pattern_that_means_none_is_a_problem(
    tmp_path: Path, folder: Path
) -> None:
    manifest(folder / "remote")
    assert [each for each in look(tmp_path) if each.area == "remote"] == []
    silent(look(tmp_path, remote_models=["openai/painter"], remote_keys=["*"]))
    found = told(look(tmp_path, remote_models=["openai/p*", "opnai/*"], remote_keys=["*"]), "problem")
    assert (found.area, found.subject) == ("remote", "remote_models")
    assert "'opnai/*'" in found.message and "does not start" in str(found.remedy)


def test_a_ready_made_manifest_that_cannot_be_read_is_named(tmp_path: Path, folder: Path) -> None:
    manifest(folder / "remote", remote="max_n = 0")
    found = look(tmp_path, remote_models=["openai/*"], remote_keys=["*"])
    assert ("models", "openai-painter.toml") in [
        (each.area, each.subject) for each in found if each.status == "problem"
    ]


def test_an_unknown_provider_is_a_problem_with_those_that_there_are(tmp_path: Path, folder: Path) -> None:
    manifest(folder, "lab/painter", provider="opnai")
    found = told(look(tmp_path, remote_keys=["*"]), "problem")
    assert found.subject == "lab/painter" and "'opnai'" in found.message and "openai_compatible" in str(found.remedy)


def test_a_missing_key_is_a_problem_that_names_the_variable_and_the_section(tmp_path: Path, folder: Path) -> None:
    manifest(folder)
    manifest(folder, "openai/drawer")
    found = told(look(tmp_path, {}, remote_keys=["*"]), "problem")
    assert (found.area, found.subject) == ("remote", "openai")
    assert found.message == "there is no key for openai/drawer, openai/painter"
    assert "OPENAI_API_KEY" in str(found.remedy) and "`[openai]`" in str(found.remedy)


def test_an_address_of_one_s_own_gets_no_provider_s_key_and_the_remedy_says_what_to_name(
    tmp_path: Path, folder: Path
) -> None:
    manifest(folder, remote='base_url = "https://proxy.example.org/v1"')
    found = told(look(tmp_path, remote_keys=["*"]), "problem")
    assert "remote.credentials" in str(found.remedy)


def test_a_server_that_needs_no_key_is_no_problem(tmp_path: Path, folder: Path) -> None:
    manifest(folder, "lab/painter", "openai_compatible", remote='base_url = "http://127.0.0.1:9/v1"')
    silent(look(tmp_path, {}))


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (None, 0o600, "cannot be read"),
        ('openai.keys = ["sk-canary-7"]', 0o644, "can be read by others"),
        ('openai.keys = ["sk-canary-7"', 0o600, "not valid TOML"),
        ("openai.keys = []", 0o600, "it takes sections such as [openai]"),
        ('openai.keys = ["sk-canary-7 "]', 0o600, "this is no key"),
    ],
)
def test_a_file_of_keys_with_which_the_hub_does_not_start_is_a_problem(
    tmp_path: Path, folder: Path, content: str | None, mode: int, words: str
) -> None:
    file = tmp_path / "keys.toml"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    manifest(folder)
    found = told(look(tmp_path, remote_keys=["*"], credentials=file), "problem")
    assert (found.area, found.subject) == ("remote", "credentials")
    assert words in found.message and str(file) in found.message


def test_a_section_of_keys_that_nothing_uses_is_a_warning(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('lab.keys = ["sk-canary-7"]\nopnai.keys = ["sk-canary-7"]')
    file.chmod(0o600)
    manifest(folder, "lab/painter", "openai_compatible", remote='base_url = "https://lab.example"\ncredentials = "lab"')
    found = told(look(tmp_path, {}, remote_keys=["*"], credentials=file), "warning")
    assert found.subject == "credentials" and "[opnai]" in found.message


@pytest.mark.parametrize("host", ["lab.example", "127.0.0.1"])
def test_a_key_that_goes_to_another_machine_in_the_clear_is_a_warning(tmp_path: Path, folder: Path, host: str) -> None:
    manifest(folder, remote=f'base_url = "http://{host}:8000/v1"\ncredentials = "openai"')
    found = look(tmp_path, remote_keys=["*"])
    if host == "127.0.0.1":
        silent(found)
    else:
        assert "unencrypted" in told(found, "warning").message


def test_models_that_nobody_may_use_are_told(tmp_path: Path, folder: Path) -> None:
    manifest(folder)
    nobody = told(look(tmp_path), "warning")
    assert nobody.subject == "remote_keys" and "openai/painter" in nobody.message
    offline = told(look(tmp_path, offline=True, remote_keys=["*"]), "warning")
    assert offline.subject == "offline" and "openai/painter" in offline.message


def test_a_budget_without_prices_is_told_for_those_keys_alone_that_may_leave(tmp_path: Path, folder: Path) -> None:
    manifest(folder)
    keys = {"alice": "sk-alice", "bob": "sk-bob"}
    silent(look(tmp_path, api_keys=keys, remote_keys=["alice"], budgets={"bob": 5}))
    found = told(look(tmp_path, api_keys=keys, remote_keys=["alice"], budgets={"alice": 5}), "warning")
    assert found.subject == "openai/painter" and "(alice)" in found.message


def test_prices_older_than_a_year_are_told(tmp_path: Path, folder: Path) -> None:
    for days, status in ((364, "ok"), (367, "warning")):
        manifest(folder, prices=f"as_of = {TODAY - dt.timedelta(days)}\nmegapixel = 0.1")
        found = look(tmp_path, remote_keys=["*"])
        assert ({each.status for each in found} == {"ok"}) == (status == "ok"), found
    assert told(found, "warning").subject == "openai/painter"


def test_parameters_that_no_request_can_have_are_told(tmp_path: Path, folder: Path) -> None:
    at = 'base_url = "http://127.0.0.1:9/v1"\nhonours = ["seed", "sed"]'
    manifest(folder, "lab/painter", "openai_compatible", remote=at)
    assert "names sed," in told(look(tmp_path), "warning").message


@pytest.mark.parametrize(
    ("provider", "honours", "strange"),
    [
        ("openai_compatible", ["user", "safety_identifier", "strict", "seed"], ""),
        ("openai_compatible", ["partial_images", "size"], ""),
        ("bytedance", ["seed", "negative_prompt"], "negative_prompt"),
        ("google", ["guidance_scale"], "guidance_scale"),
    ],
)
def test_what_the_provider_can_tell_no_model_is_told(
    tmp_path: Path, folder: Path, provider: str, honours: list[str], strange: str
) -> None:
    manifest(folder, "lab/painter", provider, remote=f'base_url = "http://127.0.0.1:9/v1"\nhonours = {honours}')
    told_of = [each.message for each in look(tmp_path) if "honours" in each.message]
    assert [f"names {strange}, which {provider}" in each for each in told_of] == [True] * bool(strange)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ('model = "openai/gone"', "there is no model 'openai/gone'"),
        ('model = "other"', "'other' is a route itself"),
        ('model = "dall-e-3", keys = ["carol"]', "'dall-e-3' is for the key 'carol'"),
    ],
)
def test_a_target_that_cannot_serve_is_a_warning_and_a_route_without_any_a_problem(
    tmp_path: Path, folder: Path, target: str, words: str
) -> None:
    route(folder, 'model = "builtin"', name="other")
    route(folder, target, 'model = "mine"')
    some = told(look(tmp_path, aliases={"mine": "builtin"}), "warning")
    assert (some.area, some.subject, some.message) == ("remote", "either", some.message) and words in some.message
    route(folder, target)
    none = told(look(tmp_path), "problem")
    assert none.subject == "either" and words in none.message


def test_aliases_may_lead_to_remote_models_and_to_several(tmp_path: Path, folder: Path) -> None:
    manifest(folder)
    silent(
        look(tmp_path, remote_keys=["*"], aliases={"gpt-image-1": "openai/painter", "x": ["builtin", "openai/painter"]})
    )
    found = told(look(tmp_path, remote_keys=["*"], aliases={"x": ["builtin", "openai/gone"]}), "warning")
    assert (found.area, found.subject) == ("remote", "aliases.x") and "'openai/gone'" in found.message


@pytest.mark.parametrize(
    ("targets", "words"),
    [([], "it names none"), (["gone"], "there is no model 'gone'"), (["y"], "'y' is a route itself")],
)
def test_an_alias_of_several_models_that_leads_to_none_is_a_problem(
    tmp_path: Path, folder: Path, targets: list[str], words: str
) -> None:
    assert folder.is_dir()
    found = told(look(tmp_path, aliases={"x": targets, "y": ["builtin"]}), "problem")
    assert found.subject == "aliases.x" and words in found.message


def test_a_missing_key_is_no_problem_of_a_hub_that_is_offline(tmp_path: Path, folder: Path) -> None:
    manifest(folder)
    found = [each for each in look(tmp_path, {}, offline=True) if each.subject == "openai"]
    assert [(each.status, "offline" in each.message) for each in found] == [("ok", True)]


def test_a_plain_name_of_openais_that_means_a_model_of_this_machine_is_told(tmp_path: Path, folder: Path) -> None:
    manifest(folder)
    source = folder / "openai-painter.toml"
    for file in folder.glob("*.toml"):
        if 'id = "openai/painter"' in file.read_text():
            source = file
    source.write_text(source.read_text().replace("openai/painter", "openai/gpt-image-2"))
    chosen = [each for each in look(tmp_path, remote_keys=["*"]) if each.subject == "openai/gpt-image-2"]
    assert [each.status for each in chosen] == ["ok"] and "served by builtin" in chosen[0].message
    moved = look(tmp_path, remote_keys=["*"], aliases={"gpt-image-2": "openai/gpt-image-2"})
    assert [each for each in moved if each.subject == "openai/gpt-image-2"] == []


def test_a_route_that_is_an_alias_is_told_among_the_routes(tmp_path: Path, folder: Path) -> None:
    assert folder.is_dir()
    found = [each for each in look(tmp_path, aliases={"x": ["dall-e-3", "builtin"]}) if each.subject == "aliases.x"]
    assert [(each.status, each.message) for each in found] == [("ok", "a route: dall-e-3, builtin")]


def test_the_command_tells_of_remote_models_in_json_too(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest(folder)
    for variable in [name for name in os.environ if name.startswith(("HUB_", "OPENAI_"))]:
        monkeypatch.delenv(variable)
    for name, value in {"CACHE_DIR": tmp_path / "c", "MODELS_DIR": folder, "REMOTE_KEYS": "*", "PORT": "1"}.items():
        monkeypatch.setenv(f"HUB_{name}", str(value))
    monkeypatch.setattr("hub.doctor.ask", lambda question: Seen())
    done = CliRunner().invoke(main, ["doctor", "--json"])
    found = [each for each in json.loads(done.stdout) if each["area"] == "remote"]
    assert done.exit_code == 1
    assert [(each["subject"], each["status"]) for each in found] == [("openai", "problem"), ("remote_keys", "ok")]
