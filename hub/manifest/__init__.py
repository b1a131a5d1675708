"""Manifests: what a model is, where it lies, what it can do. One TOML file each: of a local model, a remote one, or a
route.

docs/manifests.md explains each field, and docs/manifest.schema.json is made of the Structs here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hub.manifest.listing import ID_PATTERN, SIZE, ModelId, PricesSection, TokenPrices, parse_size
from hub.manifest.local import (
    COMMIT_PATTERN,
    COMPONENT_FILES,
    MIN_OUTPUT,
    REPO_PATTERN,
    SCHEDULER_PATTERN,
    VARIANT_PATTERN,
    DefaultsSection,
    LossySection,
    ModelManifest,
    PipelineSection,
    Sha256,
    SizeSection,
    SourceSection,
    Variant,
    repo_folder,
)
from hub.manifest.remote import (
    CREDENTIALS_PATTERN,
    PROVIDER_PATTERN,
    Input,
    RemoteDefaults,
    RemoteManifest,
    RemoteSection,
    ShapesSection,
)
from hub.manifest.route import Order, RouteManifest, TargetSection

__all__ = [
    "COMMIT_PATTERN",
    "COMPONENT_FILES",
    "CREDENTIALS_PATTERN",
    "ID_PATTERN",
    "MIN_OUTPUT",
    "PROVIDER_PATTERN",
    "REPO_PATTERN",
    "SCHEDULER_PATTERN",
    "SIZE",
    "VARIANT_PATTERN",
    "AnyManifest",
    "DefaultsSection",
    "Input",
    "LossySection",
    "ModelId",
    "ModelManifest",
    "Order",
    "PipelineSection",
    "PricesSection",
    "RemoteDefaults",
    "RemoteManifest",
    "RemoteSection",
    "RouteManifest",
    "Sha256",
    "ShapesSection",
    "SizeSection",
    "SourceSection",
    "TargetSection",
    "TokenPrices",
    "Variant",
    "kind_of",
    "manifest_schema",
    "parse_size",
    "repo_folder",
]

AnyManifest = ModelManifest | RemoteManifest | RouteManifest


def kind_of(values: dict[str, Any]) -> type[AnyManifest]:
    """Which kind of manifest a TOML document is."""
    if "targets" in values:
        return RouteManifest
    return ModelManifest if values.get("provider", "local") == "local" else RemoteManifest


def manifest_schema() -> dict[str, Any]:
    """A JSON Schema of manifests, for editors: docs/manifest.schema.json. What no schema says (which fields do not go
    together) the hub checks when it reads them."""
    schemas, components = msgspec.json.schema_components(
        [ModelManifest, RemoteManifest, RouteManifest], ref_template="#/$defs/{name}"
    )
    schema = _flowing({"anyOf": list(schemas), "$defs": components})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A model of the hub", **schema}


def _flowing(value: Any) -> Any:
    """The same with docstrings as running text, and patterns as JSON Schema has them, whose `$` is the very end."""
    if isinstance(value, dict):
        return {name: _flowing(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_flowing(each) for each in value]
    return " ".join(value.split()).replace(r"$(?!\n)", "$") if isinstance(value, str) else value
