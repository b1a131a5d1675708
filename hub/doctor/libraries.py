"""The libraries: whether they are installed, as the hub wants them. None is imported."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from hub.doctor.findings import Case, Finding, ok, problem
from hub.manifest import ModelManifest
from hub.settings import CHECKOUT

EXTRA = "quantization"
INSTALL = "Install the hub anew (scripts/serve does in a checkout), or"


def wanted() -> tuple[list[Requirement], list[Requirement]]:
    """What the hub cannot do without, and what the extra for quantized weights brings. As the checkout says, which
    may be newer than what was installed of it."""
    if CHECKOUT:
        project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"][EXTRA]
        return [Requirement(each) for each in project["dependencies"]], [Requirement(each) for each in extras]
    all_of_them = [Requirement(each) for each in requires("image-hub") or []]
    needed = [each for each in all_of_them if not each.marker or each.marker.evaluate({"extra": ""})]
    extra = [each for each in all_of_them if each.marker and each.marker.evaluate({"extra": EXTRA})]
    return needed, [each for each in extra if each not in needed]


def check(case: Case) -> Iterator[Finding]:
    """All that is needed, and of the extras what the manifests ask for."""
    needed, extras = wanted()
    wrong = {each.name: words for each in needed if (words := _wrong(each))}
    for each in needed:
        if each.name in wrong:
            remedy = f"{INSTALL} `{_pip(each)}`"
            yield problem("libraries", each.name, wrong[each.name], remedy)
    shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers") if name not in wrong)
    python = f"Python {platform.python_version()}"
    yield ok("libraries", f"{len(needed) - len(wrong)} of {len(needed)}", f"{python}, {shown}")
    by_name = {each.name: each for each in extras}
    for model in case.models:
        for name, why in _extras_of(model).items():
            each = by_name.get(name, Requirement(name))
            if words := _wrong(each):
                remedy = f"`pip install 'image-hub[{EXTRA}]'`, or `{_pip(each)}`"
                yield problem("libraries", model.id, f"{why} needs {name}, and {words}", remedy)


def _extras_of(model: ModelManifest) -> dict[str, str]:
    """Which libraries a manifest asks for, and what does."""
    asked = {}
    if model.quantized_components:
        asked["gguf"] = f"components.{model.quantized_components[0]}"
    if model.lossy.quantization:
        asked[model.lossy.quantization.partition(":")[0]] = "lossy.quantization"
    return asked


def _wrong(each: Requirement) -> str | None:
    try:
        found = version(each.name)
    except PackageNotFoundError:
        return "it is not installed"
    if each.specifier.contains(found, prereleases=True):
        return None
    return f"it is {found}, and the hub wants {each.specifier}"


def _pip(each: Requirement) -> str:
    return f"pip install '{each.name}{each.specifier}'"
