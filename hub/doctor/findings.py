"""What an examination finds, and what it is given to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct

from hub.engine.probed import Seen
from hub.manifest import ModelManifest, RemoteManifest, RouteManifest
from hub.settings import Settings

Area = Literal[
    "settings", "libraries", "devices", "folders", "models", "remote", "memory", "clock", "links", "offline", "engine"
]
Status = Literal["ok", "warning", "problem"]


class Finding(Struct, frozen=True, kw_only=True):
    """Something that was looked at: where, what, whether it is as it should be, how it is, and what to do."""

    area: Area
    subject: str
    """A setting, a folder, a model's id …"""
    status: Status
    message: str
    remedy: str | None = None
    """None where there is nothing to do."""


def ok(area: Area, subject: str, message: str) -> Finding:
    """As it should be."""
    return Finding(area=area, subject=subject, status="ok", message=message)


def warning(area: Area, subject: str, message: str, remedy: str) -> Finding:
    """The hub works, and its owner should know."""
    return Finding(area=area, subject=subject, status="warning", message=message, remedy=remedy)


def problem(area: Area, subject: str, message: str, remedy: str) -> Finding:
    """Requests fail because of this, or the hub does not start."""
    return Finding(area=area, subject=subject, status="problem", message=message, remedy=remedy)


class Case(Struct, kw_only=True):
    """What is examined: the settings, the manifests that can be read, of models here and of others, whether nothing may
    leave the machine, the key for the running hub, the environment, and what a process with torch has seen (asked for
    when it is wanted: that takes seconds)."""

    settings: Settings
    models: list[ModelManifest]
    elsewhere: list[RemoteManifest | RouteManifest] = []
    offline: bool
    key: str | None
    environ: Mapping[str, str]
    seen: Callable[[], Seen]
