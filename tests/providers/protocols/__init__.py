"""One file for each of hub/providers: how the provider talks. Found by its name, as the adapters are."""

from __future__ import annotations

import importlib

from tests.providers.upstream import Protocol


def protocol(name: str) -> Protocol:
    """A provider's protocol: `protocol = …` in the file of its name."""
    found = importlib.import_module(f"{__name__}.{name}").protocol
    assert isinstance(found, Protocol)
    return found
