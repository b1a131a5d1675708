"""What can be done with models, and what comes of it: the same for the command line, the admin API and its processes.

An order that is done answers a result; one that fails, a HubError.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from hub.manifest import ModelId, SourceSection, Variant
from hub.types import Task

REVISION_PATTERN = r"^[A-Za-z0-9_](?!.*(\.\.|//|/$))[A-Za-z0-9._/-]{0,127}$(?!\n)"
BUNDLE_SUFFIX = ".hubmodels"

Revision = Annotated[str, Meta(pattern=REVISION_PATTERN)]
Text = Annotated[str, Meta(min_length=1, max_length=200)]
Models = Annotated[list[ModelId], Meta(min_length=1, max_length=100)]


class Pull(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="operation", tag="pull"):
    """Fetch a model in diffusers' layout from Hugging Face. `repo`: ORG/NAME there, or the id of a model whose
    manifest has it. `revision`: a branch, tag or commit, of which the commit is kept; null is the manifest's, else
    `main`. `variant`: fp16, for example, where a component has such files. `id`: what it is called here, null for the
    repository's name."""

    repo: Annotated[str, Meta(min_length=1, max_length=200, examples=["stabilityai/sdxl-turbo"])]
    revision: Revision | None = None
    variant: Variant | None = None
    id: ModelId | None = None


class Add(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="operation", tag="add"):
    """Write a manifest for a diffusers folder or a single safetensors file. `copy`: its files are copied into
    weights_dir, else they stay where they are. `config`: for a single file, a folder of configurations, or the id of a
    model that has them."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    id: ModelId | None = None
    name: Text | None = None
    license: Text | None = None
    copy: bool = False
    config: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    variant: Variant | None = None


class Verify(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="operation", tag="verify"):
    """Read every file of these models, null for all, and compare it with what it should be. What is damaged is set
    aside, so that nobody draws with it."""

    models: Models | None = None


class Remove(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="operation", tag="remove"):
    """Delete a model's manifest, and its weights where they lie in weights_dir and no other model uses them."""

    model: ModelId


class Clean(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="operation", tag="gc"):
    """Delete what no model uses: interrupted downloads, files set aside, old revisions. `dry_run`: only say what."""

    dry_run: bool = False


class Alias(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="operation", tag="alias"):
    """Give a model another name, or with a null `target` take it away."""

    name: ModelId
    target: ModelId | None


class Export(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="operation", tag="export"):
    """Write models into one file, a bundle, to be carried to another machine. `sign_with`: an Ed25519 private key."""

    models: Models
    bundle: Annotated[str, Meta(min_length=1, max_length=4096)]
    sign_with: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None


class Import(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="operation", tag="import"):
    """Take the models of a bundle. `trust`: a file with the public keys that may have signed it; without, a signature
    is not asked for. `replace`: models that are here already, too."""

    bundle: Annotated[str, Meta(min_length=1, max_length=4096)]
    trust: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    replace: bool = False


Order = Pull | Add | Verify | Remove | Clean | Alias | Export | Import


class Made(Struct, frozen=True, kw_only=True, tag_field="object", tag="models.changed"):
    """Models that were pulled, added or imported, their bytes, and what of their manifests was guessed. `signed_by`: of
    those that came in a bundle, the fingerprint of the key that signed it; whether it is trusted was asked before,
    where the order told who is."""

    models: list[str]
    bytes: int
    guessed: list[str]
    signed_by: str | None = None


Problem = Literal["damaged", "missing"]


class Fault(Struct, frozen=True, kw_only=True):
    """A file that is not what it should be: `damaged` or `missing`; whether it was set aside."""

    model: str
    file: str
    problem: Problem
    quarantined: bool


class Verified(Struct, frozen=True, kw_only=True, tag_field="object", tag="models.verified"):
    """Every model that was looked at, the files and bytes that were read, and what was wrong."""

    models: list[str]
    files: int
    bytes: int
    faults: list[Fault]


class Gone(Struct, frozen=True, kw_only=True, tag_field="object", tag="models.removed"):
    """What was deleted, or would be: manifests by id, and the rest by name; and how many bytes that frees."""

    models: list[str]
    deleted: list[str]
    bytes: int
    dry_run: bool = False


class Renamed(Struct, frozen=True, kw_only=True, tag_field="object", tag="models.alias"):
    """An alias, and the model that answers to it from now on; null where none does."""

    name: str
    target: str | None


class Bundled(Struct, frozen=True, kw_only=True, tag_field="object", tag="models.bundle"):
    """A bundle that was written: its file's name and size, and the fingerprint of the key that signed it."""

    bundle: str
    models: list[str]
    bytes: int
    signed_by: str | None


Result = Made | Verified | Gone | Renamed | Bundled

Origin = Literal["built-in", "huggingface", "local", "folder", "file"]


class LibraryModel(Struct, frozen=True, kw_only=True):
    """A model of this hub as its owner sees it. `origin`: shipped with the hub; fetched from Hugging Face (`source`);
    copied or imported; or a folder or file of the owner's own. `state`: whether its weights are there. `bytes`: on the
    disk. `last_used_at`: unix seconds, null where that is not known; `loaded` is null where no hub was asked."""

    id: str
    name: str
    description: str
    license: str
    tasks: list[Task]
    aliases: list[str]
    origin: Origin
    source: SourceSection | None
    variant: str | None
    state: Literal["ready", "missing"]
    bytes: int
    last_used_at: int | None
    loaded: bool | None
    default: bool
    """Whether requests that name no model get it."""
