"""What the worker says of its device, of others, and of those that it cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hub.engine.devices import Unusable, devices_here, memory_of, open_device, why_not, works
from hub.engine.protocol import DeviceMemory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "setting", "count", "built", "words"),
    [
        ("cuda", "cuda", 0, "13.0", "HUB_DEVICE=cuda (`device` in hub.toml), but torch finds no CUDA device here. Set"),
        ("cuda:1", "cuda:1", 0, None, "torch finds no CUDA device (this torch is built without) here."),
        ("cuda:2", "cuda:2", 2, "13.0", "torch finds only cuda:0, cuda:1 here."),
        ("mps", "mps", 2, "13.0", "torch finds no Apple GPU here."),
        ("cuda:2", "cuda:0,cuda:2", 1, "13.0", "(`device` in hub.toml) names cuda:2, but torch finds only cuda:0 here"),
        ("cuda:1", "auto", 1, "13.0", "cuda:1 was there when the hub started, but torch finds only cuda:0 now."),
    ],
)
def test_why_a_device_cannot_be_used_is_told_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, device: str, setting: str, count: int, built: str | None, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    assert words in why_not(device, setting)


class Machine:
    """Two CUDA devices, of which one can be broken; torch asks nothing of a real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.broken = False
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "is_available", lambda: True)
        monkeypatch.setattr(cuda, "device_count", lambda: 2)
        monkeypatch.setattr(cuda, "set_device", lambda device: self.asked.append(f"use {device}"))
        monkeypatch.setattr(cuda, "mem_get_info", self.memory)
        monkeypatch.setattr(cuda, "memory_reserved", lambda _: 7)
        monkeypatch.setattr(cuda, "memory_allocated", lambda _: 5)
        monkeypatch.setattr(cuda, "get_device_properties", lambda index: type("P", (), {"total_memory": 100 + index}))

    def memory(self, device: torch.device) -> tuple[int, int]:
        self.asked.append(f"memory {device}")
        if self.broken:
            raise RuntimeError("CUDA error: device is busy or unavailable\nCompile with TORCH_USE_CUDA_DSA …")
        return 60, 100


@pytest.mark.parametrize(("wanted", "own", "other"), [("auto", 0, 1), ("cuda", 0, 1), ("cuda:1", 1, 0)])
def test_a_gpu_is_called_by_its_number_and_the_others_are_told_but_not_touched(
    monkeypatch: pytest.MonkeyPatch, wanted: str, own: int, other: int
) -> None:
    machine = Machine(monkeypatch)
    device = open_device(wanted, wanted)
    assert str(device) == f"cuda:{own}"
    assert devices_here(device) == [
        DeviceMemory(f"cuda:{own}", 100, 62),
        DeviceMemory(f"cuda:{other}", 100 + other, 100 + other),
    ]
    assert set(machine.asked) == {f"use cuda:{own}", f"memory cuda:{own}"}


def test_a_gpu_that_is_there_and_broken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch).broken = True
    with pytest.raises(
        Unusable, match=r"^cuda:1 is there but cannot be used: CUDA error: device is busy or unavailable$"
    ):
        open_device("cuda:1", "auto")


def test_a_missing_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch)
    with pytest.raises(Unusable, match="torch finds only cuda:0, cuda:1 here"):
        open_device("cuda:2", "cuda:2")


def test_the_cpus_memory_is_the_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "meminfo"
    monkeypatch.setattr("hub.engine.devices.MEMORY", source)
    source.write_text("MemTotal:       24575996 kB\nMemFree: 1 kB\nMemAvailable:   21036568 kB\nOdd\n")
    assert devices_here(open_device("cpu", "cpu,cpu")) == [DeviceMemory("cpu", 24575996 << 10, 21036568 << 10)]
    for unusual in ("", "MemTotal: 1 kB\n", "MemTotal: many kB\n"):
        source.write_text(unusual)
        told = memory_of(CPU)
        assert told.total == told.free > 1 << 28


def test_a_device_that_raises_does_not_work_and_one_that_is_full_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert works(CPU)

    def answer(error: Exception) -> None:
        def ones(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(torch, "ones", ones)

    answer(torch.AcceleratorError("CUDA error: unspecified launch failure"))
    assert not works(CPU)
    answer(torch.OutOfMemoryError("CUDA out of memory"))
    assert works(CPU)
