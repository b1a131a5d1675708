"""docs/providers.md says of each provider, and each ready-made model, what the code and the manifests say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache

import pytest

from hub import providers
from hub.manifest import RemoteManifest
from hub.registry import read_manifest
from hub.remote.wish import OPTIONAL
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "providers.md"
COLUMNS = ("size", "seed", "quality", "partial_images")
"""Parameters with columns of their own."""


@cache
def ready_made() -> tuple[RemoteManifest, ...]:
    found = [read_manifest(file) for file in sorted((ROOT / "models" / "remote").glob("*.toml"))]
    assert all(isinstance(manifest, RemoteManifest) for manifest in found)
    return tuple(manifest for manifest in found if isinstance(manifest, RemoteManifest))


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    names = head.split(" | ")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def yes(name: str, of_each: list[frozenset[str]]) -> str:
    held = [name in each for each in of_each]
    return "yes" if all(held) else "some models" if any(held) else "–"


def most(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(high) if low == high else f"{low} to {high}, by model"


def tasks(of: Iterable[RemoteManifest]) -> str:
    found = {task for manifest in of for task in manifest.tasks}
    words = {"text-to-image": "generate", "image-to-image": "edit", "inpainting": "mask"}
    return ", ".join(word for task, word in words.items() if task in found) or "by manifest"


def provider_row(name: str) -> list[str]:
    adapter = providers.adapter(name)
    models = [manifest for manifest in ready_made() if manifest.provider == name]
    honours = [adapter.honoured(manifest) for manifest in models] or [adapter.honours]
    others = [each for each in OPTIONAL if each not in COLUMNS and any(each in some for some in honours)]
    return [
        f"[{adapter.title if models else name}]({adapter.documentation})",
        f"`{name}`",
        f"`{adapter.key_variable}`" if adapter.key_variable else "by manifest",
        tasks(models),
        most([manifest.remote.max_n for manifest in models]) if models else "by manifest",
        *(yes(each, honours) for each in COLUMNS),
        ", ".join(f"`{each}`" if yes(each, honours) == "yes" else f"`{each}` (some)" for each in others) or "–",
    ]


def providers_table() -> str:
    head = "who | `provider` | key | tasks | pictures a call | size | seed | quality | previews | further parameters"
    return table(head, [provider_row(name) for name in providers.names()])


def shapes(manifest: RemoteManifest) -> str:
    remote = manifest.remote
    if "size" not in providers.adapter(manifest.provider).honoured(manifest):
        return "the provider's"
    if remote.sizes:
        return ", ".join(remote.sizes) if len(remote.sizes) < 5 else f"{len(remote.sizes)} sizes"
    if remote.shapes:
        return f"{remote.shapes.min} to {remote.shapes.max} a side, multiples of {remote.shapes.multiple}"
    return f"{len(remote.aspect_ratios)} aspect ratios" if remote.aspect_ratios else "any"


def models_table() -> str:
    rows = [
        [
            f"`{manifest.id}`",
            tasks([manifest]),
            shapes(manifest),
            str(manifest.remote.max_n),
            str(manifest.remote.max_images) if {"image-to-image", "inpainting"} & set(manifest.tasks) else "–",
            str(manifest.prices.as_of or "no prices"),
        ]
        for manifest in ready_made()
    ]
    return table("id | tasks | draws | pictures a call | source pictures | prices of", rows)


@pytest.mark.parametrize(("section", "made"), [("providers", providers_table), ("models", models_table)])
def test_the_tables_say_what_the_code_says(section: str, made: object) -> None:
    """HUB_UPDATE_DOCS=1 writes them."""
    assert callable(made)
    text, pattern = PAGE.read_text(), rf"(<!-- {section}: [^\n]*-->\n)(.*?)(<!-- end of {section} -->)"
    assert re.search(pattern, text, re.DOTALL)
    wanted = re.sub(pattern, lambda found: f"{found[1]}\n{made()}\n\n{found[3]}", text, flags=re.DOTALL)
    if os.environ.get("HUB_UPDATE_DOCS"):
        PAGE.write_text(wanted)
    assert PAGE.read_text() == wanted


def test_every_ready_made_model_has_a_provider_a_file_of_its_own_name_and_what_the_documentation_needs() -> None:
    for file in sorted((ROOT / "models" / "remote").glob("*.toml")):
        manifest = read_manifest(file)
        assert isinstance(manifest, RemoteManifest), file.name
        assert manifest.provider in providers.names(), file.name
        assert file.name == f"{manifest.id.replace('/', '-')}.toml"
        assert manifest.id.startswith(f"{manifest.provider.replace('_', '-')}/"), file.name
        assert not manifest.aliases, "names such as gpt-image-2 are the owner's to give away"
        assert manifest.remote.base_url is None and manifest.remote.credentials is None, file.name


@pytest.mark.parametrize("name", providers.names())
def test_every_provider_names_its_documentation_and_honours_only_what_there_is(name: str) -> None:
    adapter = providers.adapter(name)
    assert adapter.name == name and adapter.title and adapter.documentation.startswith("https://")
    assert adapter.honours <= set(OPTIONAL)
    assert adapter.base_url is None or re.fullmatch(r"https://[a-z0-9.-]+(/[A-Za-z0-9._/-]*[^/])?", adapter.base_url)
    assert bool(adapter.key_variable) == adapter.needs_key
