"""The registry: one TOML manifest per model, all read and checked at start, and again when they have changed.

A manifest is the only thing that a new model needs. docs/manifests.md explains each field.
"""

from __future__ import annotations

from hub.registry.live import LiveRegistry
from hub.registry.models import ALL_MODELS, ListedModel, Registry
from hub.registry.opening import open_registry, route_of
from hub.registry.reading import (
    ALIASES,
    REMOTE,
    absence,
    manifests_in,
    named,
    read_aliases,
    read_manifest,
    ready_made_in,
)
from hub.registry.revision import drawn_by

__all__ = [
    "ALIASES",
    "ALL_MODELS",
    "REMOTE",
    "ListedModel",
    "LiveRegistry",
    "Registry",
    "absence",
    "drawn_by",
    "manifests_in",
    "named",
    "open_registry",
    "read_aliases",
    "read_manifest",
    "ready_made_in",
    "route_of",
]
