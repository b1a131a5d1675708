"""The base URL: whether a link that the hub makes leads to its own file. A real one is made, followed and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from hub.calls import Answer, get, hub_url, leads_here
from hub.doctor.findings import Case, Finding, ok, problem, warning
from hub.errors import ConfigurationError, HubError
from hub.files import Files

TTL = 60
"""Seconds: who kills the doctor leaves a file for no longer."""
RUN = "Start it (`hub serve`), and run `hub doctor` again while it runs."
ONE_CACHE = (
    "Run `hub doctor` with the settings (cache_dir, port) that the hub was started with; or end the other hub, or "
    "give this one another port."
)


def check(case: Case) -> Iterator[Finding]:
    """Follows a link over public_url, or over the address that the hub listens on."""
    settings = case.settings
    if not settings.port and not settings.public_url:
        words = "port is 0: what links are made of is known only to the hub that runs"
        yield warning("links", "port", words, "Set a port, or public_url, and run `hub doctor` while the hub runs.")
        return
    base, note = settings.public_url or hub_url(settings), ""
    if case.offline and settings.port and not leads_here(base):
        base, note = hub_url(settings), f"; public_url {base} was not asked, since that would leave the machine"
    secret = settings.cache_dir / "secret"
    made = _make(settings.cache_dir, secret)
    if isinstance(made, Finding):
        yield made
        return
    health = get(f"{base}/health", offline=case.offline)
    answer = _follow(case, base, *made) if made else health
    if made and isinstance(answer, Answer):
        yield _judge(base, answer, made[1], health, note)
    elif isinstance(health, Answer) and health.is_health:
        words = f"the hub that answers at {base} has another cache_dir: {settings.cache_dir} has no secret yet"
        yield problem("links", base, words, ONE_CACHE)
    else:
        yield _silent(case, base, answer)


def _make(cache: Path, secret: Path) -> tuple[Files, bytes, str] | Finding | None:
    """A small picture as the hub stores it: where, its bytes, its name. None where no hub has ever used the cache: its
    secret is not ours to make."""
    import numpy as np

    from hub.imaging.png import encode_png

    if not secret.is_file() or not (cache / "files").is_dir():
        return None
    if secret.stat().st_size != 32:
        words = f"{secret}, which signs links, is damaged, and the hub does not start"
        return problem("links", "secret", words, "Delete it; links handed out so far end with it.")
    data = encode_png(np.full((8, 8, 3), 200, np.uint8))
    try:
        files = Files(cache, TTL)
        return files, data, asyncio.run(files.save(data))
    except (ConfigurationError, HubError, OSError):
        words = "no picture could be stored, so no link was followed"
        return warning("links", "cache_dir", words, "Mend what is told of the folders, and run `hub doctor` again.")


def _follow(case: Case, base: str, files: Files, _: bytes, name: str) -> Answer | str:
    try:
        return get(f"{base}{files.link(name)}", offline=case.offline)
    finally:
        asyncio.run(files.delete([name]))


def _judge(base: str, answer: Answer, data: bytes, health: Answer | str, note: str) -> Finding:
    """What came back for the link."""
    a_hub = isinstance(health, Answer) and health.is_health
    if answer.status == 200 and answer.body == data:
        return ok("links", base, f"a link was followed, and led to the hub's own file{note}")
    if answer.code == "invalid_signature":
        words = (
            f"another hub answers at {base}, or this one with another cache_dir: links are signed with another secret"
        )
        return problem("links", base, words, ONE_CACHE)
    if answer.code == "not_found":
        words = (
            f"a hub with the same secret and other files answers at {base}: a copy of cache_dir, on another machine?"
        )
        return problem("links", base, words, "Let both use one cache_dir, or correct public_url.")
    if answer.code == "file_expired":
        words = f"the hub at {base} takes a fresh link for expired: its clock is not this machine's"
        return problem("links", base, words, "Set the clocks of both.")
    if 300 <= answer.status < 400:
        to = urlsplit(answer.location)
        words = f"{base} leads elsewhere ({answer.status}, to {to.scheme}://{to.netloc})"
        return problem("links", base, words, "Set public_url to the address at which the hub answers without that.")
    if a_hub:
        words = (
            f"the hub answers at {base}, but links do not lead to their files ({answer.status}): a proxy cuts the path"
        )
        return problem("links", base, words, "Let the proxy pass /files/ on as it is, with the whole path.")
    words = f"something that is no hub answers at {base} ({answer.status})"
    return problem("links", base, words, "Set public_url (or host and port) to where the hub listens; end the other.")


def _silent(case: Case, base: str, why: Answer | str) -> Finding:
    """Nothing that could be the hub has answered."""
    public = case.settings.public_url
    correct = "Correct public_url, or the network or proxy between."
    if isinstance(why, Answer) or why in ("too slow", "no HTTP"):
        said = f"with {why.status}" if isinstance(why, Answer) else "not in time" if why == "too slow" else "no HTTP"
        words = f"something that is no hub listens at {base}, and answers {said}"
        return problem(
            "links", base, words, "Set public_url (or host and port) to where the hub listens; end the other."
        )
    if why == "elsewhere":
        words = f"no link was followed: {base} was not asked, since that would leave the machine"
        remedy = "Open a link of the hub's from a machine that it serves; or let it listen at 0.0.0.0, too."
        return warning("links", base, words, remedy)
    if why == "unknown name":
        words = f"links are made of {base}, and this machine does not know that name"
        return problem("links", base, words, "Correct public_url (or host), or the name service (/etc/hosts).")
    if why == "no TLS":
        words = f"links are made of {base}, where no TLS connection comes about (its certificate is not trusted here?)"
        return problem("links", base, words, "Mend the proxy's certificate, or trust it on this machine.")
    if base == public and case.settings.port:
        health = get(f"{hub_url(case.settings)}/health", offline=case.offline)
        if isinstance(health, Answer) and health.is_health:
            words = f"the hub runs at {hub_url(case.settings)}, but links are made of {base}, where nothing listens"
            return problem("links", base, words, correct)
    return warning("links", base, f"no hub listens at {base}, so no link was followed", RUN)
