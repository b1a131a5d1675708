"""What a manifest's lossy settings gain, and what they cost: time and PSNR against the same model without."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from typing import TYPE_CHECKING

from benches.material import BUILTIN, Model
from benches.report import Report, ratios, spread
from benches.sides import Wish, serving, wish

if TYPE_CHECKING:
    import numpy as np

SETTINGS = {
    "skip = 0.05": "[lossy]\nskip = 0.05",
    "skip = 0.1": "[lossy]\nskip = 0.1",
    "skip = 0.2": "[lossy]\nskip = 0.2",
    "skip = 0.4": "[lossy]\nskip = 0.4",
    "storage_dtype = float8_e4m3fn": '[lossy]\nstorage_dtype = "float8_e4m3fn"',
    "storage_dtype = float8_e5m2": '[lossy]\nstorage_dtype = "float8_e5m2"',
}
IDENTICAL = 100.0
"""PSNR in dB that stands for equal pictures."""


def measure(report: Report) -> None:
    """Lossy settings of the built-in model: speed and PSNR of the same pictures against the model without them."""
    import numpy as np  # here, so that `list` and `--help` need nothing
    from PIL import Image

    models = {"none": dataclasses.replace(BUILTIN, id="plain")}
    for number, (name, section) in enumerate(SETTINGS.items()):
        models[name] = dataclasses.replace(BUILTIN, id=f"lossy-{number}", more=section)
    with serving(*models.values()) as hub:
        connection = hub.connect()

        def draw(model: Model, wanted: Wish) -> tuple[float, np.ndarray]:
            seconds, answer = hub.ask(connection, hub.body(wanted, model.id))
            file = io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))
            return seconds, np.asarray(Image.open(file).convert("RGB"), np.float64)

        drawn: dict[str, list[tuple[float, np.ndarray]]] = {name: [] for name in models}
        for model in models.values():
            draw(model, wish(BUILTIN))  # loads it
        for _ in range(report.rounds(24)):
            wanted = wish(BUILTIN)
            for name, model in models.items():
                drawn[name].append(draw(model, wanted))
    plain = drawn.pop("none")
    for name, pictures in drawn.items():
        faster = ratios([seconds for seconds, _ in plain], [seconds for seconds, _ in pictures])[1]
        apart = [psnr(picture, wanted) for (_, picture), (_, wanted) in zip(pictures, plain, strict=True)]
        report.row(name, f"{faster} as fast; PSNR {spread(apart, 'dB')}, least {min(apart):.1f}")
    report.note(f"PSNR over all pixels of {len(plain)} pictures of 128x128; {IDENTICAL:.0f} dB stands for equal ones.")


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """In dB, of values from 0 to 255."""
    error = float(((one - other) ** 2).mean())
    return min(IDENTICAL, 10 * math.log10(255**2 / error)) if error else IDENTICAL
