"""A manifest for a model that was fetched or added, out of what its files tell. Without torch; nothing is guessed in
silence.

A family's own values are in its file (hub.pipelines.families); what its files do not settle is named in `guessed`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from hub.errors import ModelRefused
from hub.library.contents import shown
from hub.manifest import (
    ID_PATTERN,
    DefaultsSection,
    ModelManifest,
    PipelineSection,
    SizeSection,
    SourceSection,
)
from hub.pipelines.families import Family, family_of
from hub.pipelines.suggested import USUAL_SIDE, Found, Suggested, read_folder, unknown
from hub.types import Task

MAX_TEXT = 200
UNKNOWN_LICENSE = "unknown"


class Draft(Struct, frozen=True):
    """A manifest to be written, sentences about it for its owner, and the fields that were guessed, such as
    `defaults.guidance_scale`."""

    manifest: ModelManifest
    notes: list[str]
    guessed: list[str]


class Given(Struct, frozen=True, kw_only=True):
    """What whoever fetched or added a model knows of it beside its files: see `describe`."""

    id: str
    name: str | None = None
    license: str | None = None
    source: SourceSection | None = None
    config: str | None = None
    variant: str | None = None
    sha256: Mapping[str, str] = {}

    @property
    def repo(self) -> str | None:
        """What the model is called where it came from."""
        return self.source.repo if self.source is not None and self.source.kind == "huggingface" else None


def cleaned(text: str, longest: int = MAX_TEXT) -> str:
    """A text out of foreign files, as a manifest may hold it: one line, printable, not too long."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[: 10 * longest])
    return " ".join(plain.split())[:longest].strip()


def id_of(name: str) -> str:
    """A model's id made of a file's or folder's name."""
    stem = name.removesuffix(".safetensors")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:128].rstrip("-._")
    return plain if re.fullmatch(ID_PATTERN, plain) else "model"


def license_in(folder: Path) -> str | None:
    """What a folder's model card says, or the first line of its licence; None where it has neither."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        card = ""
    front = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    lines = dict(re.findall(r"^(license|license_name):[ \t]*(\S.*)$", front[1], re.MULTILINE)) if front else {}
    said = lines.get("license", "").strip(" \"'")
    if said.lower() == "other":
        said = lines.get("license_name", said).strip(" \"'")
    if cleaned(said):
        return cleaned(said)
    for file in filter(Path.is_file, sorted(folder.glob("LICEN[CS]E*"))):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")[:4000]
        except OSError:
            continue
        if first := next((cleaned(line, 80) for line in text.splitlines() if cleaned(line, 80)), None):
            return first
    return None


def describe(
    place: Path,
    *,
    id: str,  # noqa: A002  # as a manifest has it
    name: str | None = None,
    license: str | None = None,  # noqa: A002
    source: SourceSection | None = None,
    config: str | None = None,
    variant: str | None = None,
    sha256: Mapping[str, str] | None = None,
    today: dt.date | None = None,
) -> Draft:
    """The manifest of a diffusers folder, or of a single file, for which `config` names the folder.

    `source` is where its weights came from, if they do not stay in their `place`; `sha256` the table of weights, by
    names relative to the folder. Raises ModelRefused where there is no pipeline in it.
    """
    given = Given(id=id, name=name, license=license, source=source, config=config, variant=variant, sha256=sha256 or {})
    return _draft(place, given, today)


def _draft(place: Path, given: Given, today: dt.date | None) -> Draft:
    folder = Path(given.config) if given.config else place
    # Of a single file the folder tells the family, and its name nothing: it is another model's.
    name = given.repo or (place.name.removesuffix(".safetensors") if given.config else place.name)
    found = read_folder(folder, name)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,99}", found.cls):
        raise ModelRefused("model_index.json is missing, or names no pipeline (`_class_name`).")
    family = family_of(found.cls)
    suggested = family.suggest(found) if family.suggest else unknown(found)
    notes, guessed = list(suggested.notes), list(suggested.guessed)
    terms, told = _license(place, given)
    notes += told
    if suggested.native is None:
        notes.append(f"The size that it was trained on is not in its files; {USUAL_SIDE}x{USUAL_SIDE} is a guess.")
        guessed.append("size")
    tasks = tasks_of(found, family, suggested)
    manifest = _manifest(place, given, suggested)
    manifest.license, manifest.tasks = terms, list(tasks)
    manifest.description = _description(found, place, given)
    manifest.created = today or dt.datetime.now(dt.UTC).date()
    return Draft(_checked(manifest), notes, list(dict.fromkeys(guessed)))


def tasks_of(found: Found, family: Family, suggested: Suggested) -> tuple[Task, ...]:
    """What the folder's pipeline can be asked for: what its family does, less what its denoiser was not made for."""
    if suggested.tasks is not None:
        return suggested.tasks
    tasks = tuple(family.pipelines) or family.tasks
    if found.wants_masks and "inpainting" in tasks and not family.pipelines:
        return ("inpainting",)
    return tasks


def _manifest(place: Path, given: Given, suggested: Suggested) -> ModelManifest:
    size = _size(suggested)
    return ModelManifest(
        id=given.id,
        name=cleaned(given.name or given.repo or place.name.removesuffix(".safetensors")) or given.id,
        description="",
        license="",
        path="" if given.source else str(place.absolute()),
        source=given.source,
        tasks=["text-to-image"],
        size=size,
        defaults=DefaultsSection(
            num_inference_steps=suggested.steps, guidance_scale=suggested.guidance, size=size.native
        ),
        pipeline=PipelineSection(
            scheduler=suggested.scheduler,
            scheduler_options=dict(suggested.scheduler_options),
            arguments=dict(suggested.arguments),
            config=given.config,
            variant=given.variant,
        ),
        sha256=dict(sorted(given.sha256.items())),
    )


def _size(suggested: Suggested) -> SizeSection:
    """Sides from half to one and a half of what it was trained on, unless the family knows better."""
    multiple = min(256, suggested.multiple or 8)

    def whole(side: float) -> int:
        return max(multiple, int(side) // multiple * multiple)

    native = whole(max(16, min(suggested.native or USUAL_SIDE, 8192)))
    least = min(native, whole(suggested.min or native / 2))
    most = max(native, whole(suggested.max or native * 1.5))
    return SizeSection(
        native=f"{native}x{native}",
        multiple=multiple,
        min=max(8, least),
        max=most,
        max_output=max(4096, native),
    )


def _license(place: Path, given: Given) -> tuple[str, list[str]]:
    if said := cleaned(given.license or ""):
        return said, []
    if found := license_in(place if place.is_dir() else place.parent) if not given.config else None:
        return found, []
    return UNKNOWN_LICENSE, ["No licence was found: write it into the manifest."]


def _description(found: Found, place: Path, given: Given) -> str:
    what = f"A {found.cls} of diffusers"
    if given.source and given.source.kind == "huggingface":
        came = f", fetched from {given.source.repo} on Hugging Face"
    else:
        kind = "file" if given.config else "folder"
        came = f", added from the {kind} {shown(cleaned(place.name, 80))}"
    variant = f", variant {given.variant}" if given.variant else ""
    return f"{what}{came}{variant}."


def _checked(manifest: ModelManifest) -> ModelManifest:
    """Structs check what they are given only when they are read: this is what reading it will find."""
    try:
        return msgspec.convert(msgspec.to_builtins(manifest), ModelManifest)
    except (msgspec.ValidationError, ValueError) as error:
        raise ModelRefused(f"No manifest can be made for this model: {error}.") from None
