"""The same request again: same JSON, same seed."""

from __future__ import annotations

import base64
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from benches.material import model
from benches.report import Report, milliseconds, quartiles
from benches.sides import Hub, serving, wish

LIMIT = 0.010


def measure(report: Report) -> None:
    """A finished request with a seed, sent again: time of the answer, which must be the same picture."""
    small = model("small", report.options)
    with serving(small) as hub:
        connection = hub.connect()
        for side in (small.native, 1024):
            for response_format in ("b64_json", "url"):
                body = hub.body(wish(small, 8, side=side), response_format=response_format)
                first, made = hub.ask(connection, body)
                time.sleep(0.2)
                times = []
                for _ in range(report.rounds(30)):
                    seconds, again = hub.ask(connection, body)
                    times.append(seconds)
                same = _picture(hub, again) == _picture(hub, made)
                middle = quartiles(times)[1]
                report.row(
                    f"{side}x{side}, {response_format}, again{'' if same else ' (ANOTHER PICTURE)'}",
                    f"{milliseconds(times)}; the first time {1e3 * first:.0f} ms",
                    f"< {1e3 * LIMIT:.0f} ms",
                    middle < LIMIT and same,
                )


def _picture(hub: Hub, answer: dict[str, Any]) -> bytes:
    """The file that an answer holds or links to."""
    image = answer["data"][0]
    if "b64_json" in image:
        return base64.b64decode(image["b64_json"])
    status, file = hub.get(urlsplit(image["url"]).path)
    if status != 200:
        sys.exit(f"the link was answered {status}")
    return file
