"""Devices and memory: what torch sees here, in a process of its own, against what settings and manifests want."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from hub.doctor.findings import Case, Finding, ok, problem, warning
from hub.engine.placement import ROOM, candidates
from hub.engine.probed import Seen
from hub.engine.protocol import DeviceMemory
from hub.library.progress import as_bytes
from hub.manifest import ModelManifest
from hub.pipelines.headers import Damaged, read_safetensors

MEGABYTE = 1 << 20
DEV = Path("/dev")


def check(case: Case) -> Iterator[Finding]:
    """Whether what the settings and the manifests name is there."""
    seen = case.seen()
    if seen.failure:
        remedy = "Mend what it names; where libraries are broken, install the hub anew."
        yield problem("devices", "torch", seen.failure, remedy)
        return
    yield ok("devices", "torch", f"{seen.torch}, built for {seen.built_for or 'CPUs alone'}")
    for device in seen.devices:
        yield ok("devices", device.name, f"{as_bytes(device.free)} free of {as_bytes(device.total)}")
    for name, words in seen.refused.items():
        yield problem("devices", name, f"{words.partition('. ')[0]}: {_why(seen, case.environ)}", _remedy(seen))
    if case.settings.device == "auto" and _driver() and not seen.uses_gpu:
        words = f"there seems to be a GPU, and the CPU is used: {_why(seen, case.environ)}"
        yield warning("devices", "auto", words, _remedy(seen))
    for model in case.models:
        yield from _pinned(model, seen)


def _pinned(model: ModelManifest, seen: Seen) -> Iterator[Finding]:
    used = [device.name for device in seen.devices]
    if model.device and not candidates(used, model.device):
        words = f"its manifest pins it to {model.device} (`device`), and this hub uses {', '.join(used) or 'none'}"
        yield problem("devices", model.id, words, "Change or remove `device` in the manifest, or `device` in hub.toml.")
    quantization = model.lossy.quantization or ""
    if quantization.startswith("bitsandbytes") and not any(name.startswith("cuda") for name in used):
        words = f"lossy.quantization: {quantization} needs a CUDA device, and this hub uses {', '.join(used) or 'none'}"
        yield problem("devices", model.id, words, "Use one of torchao, or remove it.")


def _driver() -> str:
    """What tells of a driver; empty where nothing does."""
    if (DEV / "nvidiactl").exists() or (DEV / "nvidia0").exists():
        return "NVIDIA's driver is loaded (/dev/nvidia*)"
    if shutil.which("nvidia-smi"):
        return "nvidia-smi is installed"
    return "AMD's driver is loaded (/dev/kfd)" if (DEV / "kfd").exists() else ""


def _why(seen: Seen, environ: Mapping[str, str]) -> str:
    """Why torch sees no such device, as far as it can be told from here."""
    driver = _driver()
    there = driver or "no driver of a GPU is loaded on this machine (no /dev/nvidia*, no nvidia-smi)"
    if any(device.name.startswith("cuda") for device in seen.devices):
        return "the others are there"
    if seen.built_for is None:
        return f"this torch ({seen.torch}) is built for CPUs alone; {there}"
    told = next((words for words in seen.warnings if "driver" in words.lower() or "cuda" in words.lower()), "")
    if driver and "too old" in told:
        return f"the driver is too old for this torch ({seen.built_for}): {told[:200]}"
    hidden = next((name for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES") if name in environ), None)
    if hidden:
        return f"{hidden}={environ[hidden]!r} hides what is not in it; {there}"
    return f"{there}{f', and torch says: {told[:200]}' if told else ''}"


def _remedy(seen: Seen) -> str:
    driver = _driver()
    if any(device.name.startswith("cuda") for device in seen.devices):
        return "Name one that is there, or set `device` to auto."
    if driver and seen.built_for is None:
        return "Install a torch that is built for this GPU (pytorch.org, Get started), or set `device` to cpu."
    if driver:
        return "Update the driver to one that this torch can use (`nvidia-smi` shows it), or set `device` to cpu."
    return "Set `device` to auto or cpu, or install the GPU's driver and a torch that is built for it."


def check_memory(case: Case) -> Iterator[Finding]:
    """Each model against main memory, into which it is loaded first, and the devices that may run it."""
    seen = case.seen()
    if seen.failure:
        return
    for model in case.models:
        sizes = seen.sizes.get(model.id, {})
        may = candidates([device.name for device in seen.devices], model.device)
        fits = [_fit(case, model, seen, seen.devices[index], sizes) for index in may]
        found = [finding for finding in fits if finding is not None]
        if found:  # the best of the devices counts
            yield min(found, key=lambda finding: ("ok", "warning", "problem").index(finding.status))


def _fit(
    case: Case, model: ModelManifest, seen: Seen, device: DeviceMemory, sizes: Mapping[str, int]
) -> Finding | None:
    """How a model fits a device; None where its size is not known."""
    need = sizes.get(device.name, 0)
    if not need:
        return None
    total, free = seen.main
    takes = f"its weights take {as_bytes(need)} once they are loaded"
    smaller = "Use a smaller model or dtype (`dtype`, lossy.quantization), or add memory."
    if need > total:
        return problem("memory", model.id, f"{takes}, and main memory has {as_bytes(total)} in all", smaller)
    settings = case.settings
    limit = settings.device_memory_mb * MEGABYTE if settings.device_memory_mb else device.total
    travels = device.name != "cpu" or settings.device_memory_mb is not None
    room = max(0, min(limit, device.total) - (settings.device_reserve_mb * MEGABYTE if device.name != "cpu" else 0))
    if travels and need * ROOM > room:
        allowed = f"{as_bytes(room)} of {device.name}"
        if (largest := _largest_tensor(model)) > room:
            words = f"its largest tensor alone takes {as_bytes(largest)}, and the hub may use {allowed}"
            return problem("memory", model.id, words, smaller)
        words = f"{takes}, and the hub may use {allowed}: it is brought there in parts, which is slow"
        return warning("memory", model.id, words, f"{smaller} docs/memory.md tells how it works.")
    if need * ROOM > total:
        words = f"{takes}, which leaves little of the {as_bytes(total)} of main memory for what is computed"
        return warning("memory", model.id, words, smaller)
    if need > free:
        words = f"{takes}, and main memory has {as_bytes(free)} free now"
        return warning("memory", model.id, words, "End other programs, or unload models (`hub engine unload --all`).")
    return ok("memory", model.id, f"{as_bytes(need)}, for {device.name} with {as_bytes(room)}")


def _largest_tensor(model: ModelManifest) -> int:
    """Bytes in its file: no part that is brought to a device is smaller."""
    folder, largest = Path(model.path), 0
    for file in [folder] if folder.is_file() else folder.glob("*/*.safetensors"):
        try:
            ends = sorted(tensor.end for tensor in read_safetensors(file).values())
        except (Damaged, OSError):  # told with the model
            continue
        largest = max([largest, *(end - begin for begin, end in zip([0, *ends], ends, strict=False))])
    return largest
