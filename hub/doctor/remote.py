"""Remote models and routes: whether who is named is there, and whether there are keys, callers and prices. No provider
is asked."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Generator, Iterator
from urllib.parse import urlsplit

import msgspec

from hub import providers
from hub.doctor.findings import Case, Finding, ok, problem, warning
from hub.errors import ConfigurationError
from hub.manifest import AnyManifest, ModelManifest, RemoteManifest, RouteManifest
from hub.registry import named, read_aliases, route_of
from hub.remote.credentials import Credentials, open_credentials
from hub.remote.wish import OPTIONAL, SERVERS_OWN
from hub.routing import is_elsewhere, leaves
from hub.settings import EVERYBODY

OLD = dt.timedelta(days=365)
"""After which a table of prices is to be looked at again."""
NO_START = "The hub does not start so."


def check(case: Case) -> Iterator[Finding]:
    """Nothing, where there are neither remote models nor routes, nor settings for them."""
    models = [each for each in case.elsewhere if isinstance(each, RemoteManifest)]
    yield from _patterns(case)
    for model in models:
        yield from _manifest(model)
    known = [model for model in models if model.provider in providers.names()]
    credentials = yield from _credentials(case, known)
    yield from _keys(case, known, credentials)
    yield from _allowed(case, known)
    yield from _prices(case, known)
    yield from _plain_ids(case, known)
    for route in case.elsewhere:
        if isinstance(route, RouteManifest):
            yield from _route(case, route, route.id, "Correct its targets: in its manifest.")
    for alias, route in _list_aliases(case).items():
        remedy = "Correct it under [aliases] in hub.toml, or add what is missing."
        yield from _route(case, route, f"aliases.{alias}", remedy)


def _patterns(case: Case) -> Iterator[Finding]:
    ids = [each.id for each in (*case.models, *case.elsewhere)]
    for pattern in case.settings.remote_models:
        if not any(named(each, [pattern]) for each in ids):
            words = f"no ready-made model has the id '{pattern}'"
            remedy = f"Correct or remove it: docs/providers.md has a list. {NO_START}"
            yield problem("remote", "remote_models", words, remedy)


def _manifest(model: RemoteManifest) -> Iterator[Finding]:
    """What is wrong with a manifest, whatever keys there are."""
    if model.provider not in providers.names():
        words = f"its manifest names the provider '{model.provider}', and this hub has none of that name"
        yield problem("remote", model.id, words, f"Correct it; there are {', '.join(providers.names())}.")
        return
    possible = _may_honour(model)
    if strange := sorted(set(model.remote.honours) - set(possible)):
        words = f"remote.honours names {', '.join(strange)}, which {model.provider} can never tell it"
        remedy = f"Correct it; there are {', '.join(possible)}." if possible else "Take it out."
        yield warning("remote", model.id, words, remedy)


def _may_honour(model: RemoteManifest) -> list[str]:
    """What its adapter would tell a model, if only the manifest named it."""
    names = [*OPTIONAL, *SERVERS_OWN]
    everything = msgspec.structs.replace(model, remote=msgspec.structs.replace(model.remote, honours=names))
    honoured = providers.adapter(model.provider).honoured(everything)
    return [name for name in names if name in honoured]


def _credentials(case: Case, models: list[RemoteManifest]) -> Generator[Finding, None, Credentials | None]:
    """Whether the file can be read; returns the keys that there are, None where the hub does not start."""
    file = case.settings.credentials
    try:
        found = open_credentials(file, providers.key_variables(), dict(case.environ))
    except ConfigurationError as error:
        words = str(error).removeprefix("credentials: ").rstrip(".")
        remedy = f"Correct what it names (docs/providers.md has the form), or take the setting out. {NO_START}"
        yield problem("remote", "credentials", words, remedy)
        return None
    if file is not None:
        yield ok("remote", "credentials", f"{file} can be read, by its owner alone")
        unused = set(found) - {model.keys_name for model in models} - set(providers.names())
        for name in sorted(unused):
            words = f"the keys of [{name}] are no provider's, and no model's manifest names them"
            yield warning("remote", "credentials", words, "Correct the name, or take the section out.")
    return found


def _keys(case: Case, models: list[RemoteManifest], credentials: Credentials | None) -> Iterator[Finding]:
    if credentials is None:
        return
    for name in dict.fromkeys(model.keys_name for model in models):
        same = [model for model in models if model.keys_name == name]
        shown = ", ".join(model.id for model in same[:3]) + (" …" if len(same) > 3 else "")
        if name is not None and (number := len(credentials.of(name).all)):
            yield ok("remote", name, f"{number} key{'s' if number > 1 else ''} for {shown}")
            yield from _in_the_clear(same)
        elif case.offline and all(leaves(model) or is_elsewhere(model) for model in same):
            yield ok("remote", name or same[0].id, f"no key for {shown}: none is wanted while this hub is offline")
        elif needy := [model for model in same if providers.adapter(model.provider).needs_key or name]:
            yield problem("remote", name or needy[0].id, f"there is no key for {shown}", _remedy(case, name, needy[0]))
        else:
            yield ok("remote", same[0].id, f"{shown}: asked without a key")


def _remedy(case: Case, name: str | None, model: RemoteManifest) -> str:
    if name is None:
        return "Name its keys in the manifest (`remote.credentials`): an address of yours gets no provider's key."
    file = case.settings.credentials or "a file that `credentials` names (mode 600)"
    variable = providers.key_variables().get(name)
    place = f"Set {variable}, or write" if variable else "Write"
    return f'{place} `[{name}]` and `keys = ["…"]` into {file}; or take {model.id} out.'


def _in_the_clear(models: list[RemoteManifest]) -> Iterator[Finding]:
    for model in models:
        parts = urlsplit(model.remote.base_url or "")
        if parts.scheme == "http" and is_elsewhere(model):
            words = f"its key and all requests go to {parts.netloc} unencrypted (remote.base_url is http://)"
            yield warning("remote", model.id, words, "Use https://, or a tunnel to a port of this machine.")


def _allowed(case: Case, models: list[RemoteManifest]) -> Iterator[Finding]:
    """Whether anybody may use what leaves this machine."""
    away = [model for model in models if leaves(model) or is_elsewhere(model)]
    if not away:
        return
    shown = f"{len(away)} model{'s' if len(away) > 1 else ''} ({away[0].id}{' …' if len(away) > 1 else ''})"
    if case.offline:
        words = f"{shown} of other machines: this hub is offline, and never asks them"
        yield warning("remote", "offline", words, "Nothing, if that is meant; else take them out of remote_models.")
    elif not case.settings.remote_keys:
        words = f"{shown} of other machines, and nobody may use them: remote_keys is empty"
        yield warning(
            "remote", "remote_keys", words, 'Name the keys that may, or "*" for all and for a hub without any.'
        )
    else:
        yield ok("remote", "remote_keys", f"{', '.join(case.settings.remote_keys)} may use {shown} of other machines")


def _prices(case: Case, models: list[RemoteManifest]) -> Iterator[Finding]:
    settings = case.settings
    limited = {name for name in settings.budgets if name == EVERYBODY or settings.may_leave(name)}
    for model in models:
        prices = model.prices
        if limited and leaves(model) and prices.is_free:
            who = ", ".join(sorted(limited))
            words = f"it has no prices, and so the keys with a budget ({who}) may not use it"
            yield warning("remote", model.id, words, "Write what it costs into its manifest, under [prices].")
        elif prices.as_of is not None and dt.datetime.now(dt.UTC).date() - prices.as_of > OLD:
            words = f"its prices are of {prices.as_of}, more than a year old"
            yield warning("remote", model.id, words, "Compare them with the provider's, and set prices.as_of.")


def _plain_ids(case: Case, models: list[RemoteManifest]) -> Iterator[Finding]:
    """Of OpenAI's models those whose own name, as OpenAI's clients send it, means a model of this machine."""
    ids = _names(case)
    for model in models:
        plain = model.id.removeprefix("openai/")
        if model.provider == "openai" and plain != model.id and isinstance(found := ids.get(plain), ModelManifest):
            line = f'"{plain}" = "{model.id}" under [aliases] in hub.toml changes that'
            yield ok("remote", model.id, f"requests for '{plain}' are served by {found.id}; {line}")


def _route(case: Case, route: RouteManifest, subject: str, remedy: str) -> Iterator[Finding]:
    """Whether a route leads somewhere."""
    ids = _names(case)
    wrong = []
    for target in route.targets:
        found = ids.get(target.model)
        if found is None:
            wrong.append(f"there is no model '{target.model}'")
        elif isinstance(found, RouteManifest):
            wrong.append(f"'{target.model}' is a route itself")
        elif strangers := sorted(set(target.keys) - set(case.settings.api_keys)):
            wrong.append(f"'{target.model}' is for the key '{strangers[0]}', which api_keys does not name")
    if len(wrong) == len(route.targets):
        yield problem("remote", subject, f"no target can serve it: {'; '.join(wrong) or 'it names none'}", remedy)
    elif wrong:
        yield warning("remote", subject, f"a target is left out: {'; '.join(wrong)}", remedy)
    else:
        yield ok("remote", subject, f"a route: {', '.join(target.model for target in route.targets)}")


def _list_aliases(case: Case) -> dict[str, RouteManifest]:
    """The routes that the settings' own aliases of several models are."""
    return {name: route_of(name, wanted) for name, wanted in case.settings.aliases.items() if isinstance(wanted, list)}


def _names(case: Case) -> dict[str, AnyManifest]:
    """What each id and alias leads to."""
    names = {name: each for each in (*case.models, *case.elsewhere) for name in (*each.aliases, each.id)}
    chosen: dict[str, str] = {}
    for folder in case.settings.models_dirs:
        with contextlib.suppress(ConfigurationError):  # told with the settings
            chosen |= read_aliases(folder)
    chosen |= {alias: target for alias, target in case.settings.aliases.items() if isinstance(target, str)}
    return names | {alias: names[target] for alias, target in chosen.items() if target in names} | _list_aliases(case)
