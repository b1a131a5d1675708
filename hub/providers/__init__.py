"""Sources of images. A manifest names one by `provider`: `local` is this machine, every other is one file here.

The local one is driven by hub.engine. A remote one is an adapter, a pure mapping (hub.remote.adapter), and all of them
are driven by hub.remote.provider. They are found by the names of their files; nothing lists them.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re

from hub.errors import ModelUnusable
from hub.manifest import PROVIDER_PATTERN
from hub.remote.adapter import Adapter


@functools.cache
def names() -> tuple[str, ...]:
    """All remote providers."""
    return tuple(each.name for each in pkgutil.iter_modules(__path__) if not each.ispkg)


@functools.cache
def adapter(name: str) -> Adapter:
    """A remote provider by its name; raises ModelUnusable where there is none."""
    if not re.fullmatch(PROVIDER_PATTERN, name) or name not in names():
        words = (
            f"This hub knows no provider '{name}'; there are {', '.join(names())}. Its owner has to mend the manifest."
        )
        raise ModelUnusable(words, param="model")
    found = importlib.import_module(f"{__name__}.{name}").adapter
    if not isinstance(found, Adapter):
        raise TypeError(f"hub.providers.{name}.adapter is no Adapter")
    return found


def key_variables() -> dict[str, str]:
    """By provider, the environment variable with its key."""
    return {name: adapter(name).key_variable for name in names() if adapter(name).key_variable}
