"""All models by id and alias."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from msgspec import Struct

from hub.errors import InvalidRequest, ModelNotFound
from hub.manifest import AnyManifest, ModelManifest, RouteManifest
from hub.types import Task

ALL_MODELS = "GET /v1/models lists all."
"""The end of an unknown model's error, for clients of the API."""


class ListedModel(Struct, frozen=True):
    """An id that answers requests: a model's own, or an alias of it."""

    id: str
    manifest: AnyManifest
    revision: str
    """Another one after a start with another manifest, other weights or another hub: it may draw other pictures."""

    @property
    def is_alias(self) -> bool:
        """Whether the id is another name of the manifest's model."""
        return self.id != self.manifest.id

    @property
    def response_format(self) -> Literal["url", "b64_json"] | None:
        """What an answer of it holds where the request does not say; None where nobody says."""
        found = self.manifest
        return found.response_format if isinstance(found, RouteManifest) else found.defaults.response_format

    @property
    def local(self) -> ModelManifest:
        """The manifest of a model whose weights are for this machine; raises InvalidRequest for any other."""
        if isinstance(self.manifest, ModelManifest):
            return self.manifest
        kind = "names other models" if isinstance(self.manifest, RouteManifest) else "is a remote provider's"
        raise InvalidRequest(f"'{self.id}' {kind}: there are no weights of it on this machine.", param="model")


class Registry:
    """All models by id and alias. Immutable after `open_registry`."""

    def __init__(
        self,
        manifests: Mapping[str, AnyManifest],
        aliases: Mapping[str, str],
        revisions: Mapping[str, str],
        ready_made: Collection[str] = (),
    ) -> None:
        """`revisions`: by the manifests' ids. `ready_made`: the ready-made remote models that there are, chosen or not,
        as their files are called (PROVIDER-MODEL)."""
        self._manifests = dict(manifests)
        self._aliases = dict(aliases)
        self._revisions = dict(revisions)
        self._ready_made = frozenset(ready_made)

    def __iter__(self) -> Iterator[ListedModel]:
        for name in (*self._manifests, *self._aliases):
            yield self._listed(name, self._aliases.get(name, name))

    def tasks_of(self, listed: ListedModel) -> list[Task]:
        """What an id can be asked for: of a route, whatever one of its targets can do."""
        found = listed.manifest
        if not isinstance(found, RouteManifest):
            return found.tasks
        behind = [self._manifests.get(self._aliases.get(each.model, each.model)) for each in found.targets]
        tasks = (task for each in behind if each and not isinstance(each, RouteManifest) for task in each.tasks)
        return list(dict.fromkeys(tasks))

    @property
    def local(self) -> list[ModelManifest]:
        """The models whose weights are for this machine, each once."""
        return [manifest for manifest in self._manifests.values() if isinstance(manifest, ModelManifest)]

    def _listed(self, name: str, target: str) -> ListedModel:
        return ListedModel(name, self._manifests[target], self._revisions[target])

    def get(self, model: str) -> ListedModel:
        """The model behind an id or alias; raises ModelNotFound that lists near names."""
        target = self._aliases.get(model, model)
        if target in self._manifests:
            return self._listed(model, target)
        known = [*self._manifests, *self._aliases]
        near = difflib.get_close_matches(model.lower(), known, n=3, cutoff=0.5) or list(self._manifests)[:3]
        shown = re.sub(r"[^ -~]", "?", model[:64])
        if "/" in model and model.replace("/", "-") in self._ready_made:
            words = "it is a ready-made remote model; the owner adds it to remote_models"
            raise ModelNotFound(f"The model '{shown}' is not offered here: {words}. {ALL_MODELS}", param="model")
        raise ModelNotFound(
            f"The model '{shown}' does not exist. Near names: {', '.join(near)}. {ALL_MODELS}",
            param="model",
        )
