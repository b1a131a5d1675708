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


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the files of a machine that limits nobody."""
    monkeypatch.setattr("hub.engine.devices.MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr("hub.engine.devices.OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr("hub.engine.devices.GROUPS", tmp_path / "groups")
    (tmp_path / "meminfo").write_text("MemTotal:       24575996 kB\nMemFree: 1 kB\nMemAvailable:   21036568 kB\nOdd\n")
    return tmp_path


def test_the_cpus_memory_is_the_machines(machine: Path) -> None:
    source = machine / "meminfo"
    assert devices_here(open_device("cpu", "cpu,cpu")) == [DeviceMemory("cpu", 24575996 << 10, 21036568 << 10)]
    for unusual in ("", "MemTotal: 1 kB\n", "MemTotal: many kB\n"):
        source.write_text(unusual)
        told = memory_of(CPU)
        assert told.total == told.free > 1 << 28


V2 = {"memory.max": "memory.max", "memory.current": "memory.current", "inactive_file": "inactive_file"}
V1 = {
    "memory.max": "memory.limit_in_bytes",
    "memory.current": "memory.usage_in_bytes",
    "inactive_file": "total_inactive_file",
}


def write_group(folder: Path, names: dict[str, str], limit: object, used: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names["memory.max"]).write_text(f"{limit}\n")
    (folder / names["memory.current"]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names['inactive_file']} {cache}\ninactive_file 0\n")


OWN_V1 = "9:name=systemd:/\n8:pids:/\n4:cpuset,memory:/docker/7f\n0::/other\n"


@pytest.mark.parametrize(
    ("own", "root", "names"), [("0::/docker/7f\n", "groups", V2), (OWN_V1, "groups/memory", V1)], ids=["v2", "v1"]
)
def test_a_containers_limit_is_the_cpus_memory_where_it_is_smaller(
    machine: Path, own: str, root: str, names: dict[str, str]
) -> None:
    (machine / "own").write_text(own)
    group = machine / root / "docker" / "7f"
    total, free = 24575996 << 10, 21036568 << 10
    write_group(group, names, limit=8 << 30, used=5 << 30, cache=2 << 30)
    assert memory_of(CPU) == DeviceMemory("cpu", 8 << 30, 5 << 30)
    write_group(group.parent, names, limit=9 << 30, used=8 << 30)
    assert memory_of(CPU) == DeviceMemory("cpu", 8 << 30, 1 << 30), "a group around it that is nearly full"
    write_group(group.parent, names, limit=9 << 30, used=10 << 30)
    assert memory_of(CPU) == DeviceMemory("cpu", 8 << 30, 0), "as while a limit is lowered"
    for none in ("max", 9223372036854771712):
        write_group(group, names, limit=none, used=5 << 30)
        write_group(group.parent, names, limit=none, used=5 << 30)
        assert memory_of(CPU) == DeviceMemory("cpu", total, free)
    write_group(group, names, limit=23 << 30, used=1 << 30)
    assert memory_of(CPU) == DeviceMemory("cpu", 23 << 30, free), "others on the machine use more than the container"


@pytest.mark.parametrize("path", ["/", "/docker/unseen", "/../elsewhere"])
def test_a_container_that_sees_its_own_group_as_the_root_is_limited_too(machine: Path, path: str) -> None:
    (machine / "own").write_text(f"0::{path}\n")
    write_group(machine / "groups", V2, limit=4 << 30, used=1 << 30)
    write_group(machine / "elsewhere", V2, limit=1, used=1)
    assert memory_of(CPU) == DeviceMemory("cpu", 4 << 30, 3 << 30)


def test_groups_that_tell_nothing_or_nonsense_do_no_harm(machine: Path) -> None:
    plain = memory_of(CPU)
    (machine / "own").write_text("0::/a\nodd\n")
    assert memory_of(CPU) == plain
    write_group(machine / "groups" / "a", V2, limit="many", used=0)
    assert memory_of(CPU) == plain
    write_group(machine / "groups" / "a", V2, limit=1 << 30, used=5)
    for odd in ("one two three\n\ninactive_file\n", "inactive_file much\n"):
        (machine / "groups" / "a" / "memory.stat").write_text(odd)
        assert memory_of(CPU) == DeviceMemory("cpu", 1 << 30, (1 << 30) - 5)
    (machine / "groups" / "a" / "memory.stat").unlink()
    assert memory_of(CPU) == DeviceMemory("cpu", 1 << 30, (1 << 30) - 5)


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
