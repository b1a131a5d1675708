"""`python -m hub.engine.probe`: looks at the devices as a worker would, tells, and ends. Started by hub.engine.probed.

It opens each device that the settings name, so a GPU lends it some hundred megabytes for a second.
"""

from __future__ import annotations

import sys
import warnings
from difflib import get_close_matches

import msgspec
import torch

from hub.engine.probed import Question, Seen
from hub.engine.protocol import DeviceMemory


def look(question: Question) -> Seen:
    """What torch sees here. That a driver is too old it says only once: it is asked before others can ask it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.is_available()
    from hub.engine.devices import Unusable, devices_here, main_memory, open_device
    from hub.engine.loader import loading_bytes

    found: dict[str, DeviceMemory] = {}
    refused: dict[str, str] = {}
    for wanted in dict.fromkeys(question.devices):
        try:
            own = open_device(wanted, question.setting)
            seen = devices_here(own) if wanted == "auto" else devices_here(own)[:1]
            found |= {memory.name: memory for memory in seen}
        except Unusable as error:
            refused[wanted] = str(error)
    sizes = {model.id: {name: loading_bytes(model, torch.device(name)) for name in found} for model in question.models}
    return Seen(
        torch=str(torch.__version__),
        built_for=_built_for(),
        warnings=[str(each.message).strip() for each in told],
        devices=list(found.values()),
        refused=refused,
        main=main_memory(),
        sizes=sizes,
        schedulers={name: words for name in question.schedulers if (words := _no_scheduler(name))},
    )


def _no_scheduler(name: str) -> str | None:
    """Why there is no noise scheduler of that name here. Whether a model can draw with it shows when it is loaded."""
    import diffusers

    try:
        cls = getattr(diffusers, name, None)
    except (ImportError, RuntimeError) as error:  # it is imported only now
        return f"diffusers cannot import it: {str(error).strip()[:200]}"
    if not isinstance(cls, type) or not name.endswith("Scheduler"):
        near = get_close_matches(name, [each for each in dir(diffusers) if each.endswith("Scheduler")], n=1)
        return f"diffusers has no noise scheduler of this name{f' (but {near[0]})' if near else ''}"
    if hasattr(cls, "_backends"):  # diffusers' stand-in
        return f"diffusers needs {', '.join(cls._backends)} for it, which are not all installed"
    return None


def _built_for() -> str | None:
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return "Apple's GPUs" if torch.backends.mps.is_built() else None


if __name__ == "__main__":
    answer = look(msgspec.json.decode(sys.stdin.buffer.read(), type=Question))
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(answer) + b"\n")
