"""Documentation that code can check: every setting, error code, manifest field and command is explained."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import click
import msgspec
import pytest

import hub.errors
from hub.cli import main
from hub.errors import HubError
from hub.manifest import (
    DefaultsSection,
    LossySection,
    ModelManifest,
    PipelineSection,
    PricesSection,
    RemoteDefaults,
    RemoteManifest,
    RemoteSection,
    RouteManifest,
    ShapesSection,
    SizeSection,
    SourceSection,
    TargetSection,
    TokenPrices,
    manifest_schema,
)
from hub.registry import read_manifest
from hub.settings import Settings
from tests.conftest import ROOT

DOCUMENTS = ["README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def words(document: str) -> str:
    return (ROOT / document).read_text()


@pytest.mark.parametrize("field", [info.encode_name for info in msgspec.structs.fields(Settings)])
def test_every_setting_has_a_row(field: str) -> None:
    assert f"\n| `{field}` |" in words("docs/settings.md")


def test_every_row_of_the_settings_is_a_setting() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", words("docs/settings.md"), re.MULTILINE)
    assert set(rows) == {info.encode_name for info in msgspec.structs.fields(Settings)}


def codes_in_source() -> set[str]:
    found = {cls.code for cls in vars(hub.errors).values() if isinstance(cls, type) and issubclass(cls, HubError)}
    for source in (ROOT / "hub").rglob("*.py"):
        text = source.read_text()
        found |= set(re.findall(r'code="(\w+)"', text))
        if source.name == "wire.py":
            found |= set(re.findall(r'\d{3}: \("(\w+)"', text))
    return found


def test_every_error_code_has_a_row_and_every_row_a_code() -> None:
    cells = re.findall(r"^\| \d{3} \| ([^|]*) \|", words("docs/errors.md"), re.MULTILINE)
    documented = {code for cell in cells for code in re.findall(r"`(\w+)`", cell)}
    assert documented == codes_in_source()


LOCAL, REMOTE, ROUTES, PRICES = "# Manifests", "## Remote models", "## Routes", "## Prices"
EXPLAINED = [
    (LOCAL, "", ModelManifest),
    (LOCAL, "size.", SizeSection),
    (LOCAL, "defaults.", DefaultsSection),
    (LOCAL, "pipeline.", PipelineSection),
    (LOCAL, "source.", SourceSection),
    (LOCAL, "lossy.", LossySection),
    (REMOTE, "", RemoteManifest),
    (REMOTE, "remote.", RemoteSection),
    (REMOTE, "remote.shapes.", ShapesSection),
    (REMOTE, "defaults.", RemoteDefaults),
    (ROUTES, "", RouteManifest),
    (ROUTES, "targets.", TargetSection),
    (PRICES, "prices.", PricesSection),
    (PRICES, "prices.tokens.", TokenPrices),
]
SECTIONS = ("size", "defaults", "pipeline", "lossy", "source", "remote.shapes", "targets", "prices.tokens")
"""Fields whose own fields are explained."""


@pytest.mark.parametrize(
    ("heading", "field"),
    [
        (heading, field)
        for heading, prefix, kind in EXPLAINED
        for info in msgspec.structs.fields(kind)
        if (field := f"{prefix}{info.encode_name}") not in SECTIONS and (heading, field) != (REMOTE, "remote")
    ],
)
def test_every_field_of_a_manifest_is_explained(heading: str, field: str) -> None:
    section = words("docs/manifests.md").partition(f"{heading}\n")[2]
    assert f"`{field}`" in (section if heading == LOCAL else section.partition("\n## ")[0])


@pytest.mark.parametrize("heading", [REMOTE, ROUTES])
def test_the_examples_of_manifests_are_manifests(heading: str, tmp_path: Path) -> None:
    section = words("docs/manifests.md").partition(f"{heading}\n")[2]
    (tmp_path / "example.toml").write_text(section.partition("```toml\n")[2].partition("```")[0])
    assert isinstance(read_manifest(tmp_path / "example.toml"), RemoteManifest if heading == REMOTE else RouteManifest)


def test_the_example_of_prices_is_a_table_of_prices() -> None:
    section = words("docs/manifests.md").partition(f"{PRICES}\n")[2]
    values = tomllib.loads(section.partition("```toml\n")[2].partition("```")[0])
    assert msgspec.convert(values["prices"], PricesSection).tokens


def test_the_schema_of_manifests_is_that_of_the_structs() -> None:
    """HUB_UPDATE_DOCS=1 writes it."""
    made = json.dumps(manifest_schema(), indent=2) + "\n"
    published = ROOT / "docs" / "manifest.schema.json"
    if os.environ.get("HUB_UPDATE_DOCS"):
        published.write_text(made)
    assert published.read_text() == made


def test_the_schema_takes_the_shipped_manifest_and_refuses_what_the_hub_refuses() -> None:
    import jsonschema_rs

    schema = jsonschema_rs.validator_for(manifest_schema())
    values = tomllib.loads((ROOT / "models" / "builtin.toml").read_text())
    values["created"] = values["created"].isoformat()
    assert schema.is_valid(values)
    for file in (ROOT / "models" / "remote").glob("*.toml"):
        ready_made = json.loads(msgspec.json.encode(tomllib.loads(file.read_text())))
        assert schema.is_valid(ready_made), file.name
    for wrong in ({"colour": 1}, {"tasks": []}, {"id": "../x"}, {"size": {"native": "128"}}, {"source": {"repo": "x"}}):
        assert not schema.is_valid({**values, **wrong}), wrong


def test_every_name_that_the_built_in_model_answers_for_is_listed_and_no_other() -> None:
    section = words("docs/models.md").partition("## The built-in model")[2].partition("```")[0]
    aliases = set(re.findall(r"`([\w.-]+)`", section)) - {"builtin"}
    assert aliases == set(read_manifest(ROOT / "models" / "builtin.toml").aliases)


def commands(group: click.Group, prefix: str) -> list[str]:
    found = []
    for name, command in group.commands.items():
        inner = isinstance(command, click.Group)
        found += commands(command, f"{prefix} {name}") if inner else [f"{prefix} {name}"]
    return found


@pytest.mark.parametrize("command", commands(main, "hub"))
def test_every_command_stands_in_the_readme_or_the_changelog(command: str) -> None:
    assert command in words("README.md") + words("CHANGELOG.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", words(document)):
        assert (ROOT / document).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_placeholder_is_left(document: str) -> None:
    assert not re.findall(r"@[A-Z]+@|TODO|FIXME", words(document))
