from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from hub.engine import compiling
from hub.engine.compiling import OFTEN, CompiledModule, Compiler, load
from hub.engine.forms import Formless, contiguous, example, form_of, told

CPU = torch.device("cpu")


def test_a_form_tells_shapes_and_types_and_not_values() -> None:
    def call(shape: tuple[int, ...], value: float, **more: object) -> bytes:
        return told({"sample": torch.full(shape, value), "more": {"ids": [torch.tensor(1)]}, **more})

    assert call((2, 4), 1.0) == call((2, 4), 2.0)
    assert call((2, 4), 1.0) != call((4, 4), 1.0)
    assert call((2, 4), 1.0, flag=True) != call((2, 4), 1.0, flag=False)
    assert call((2, 4), 1.0) != told({"sample": torch.ones(2, 4).half(), "more": {"ids": [torch.tensor(1)]}})


@pytest.mark.parametrize("value", [0.5, object(), {"deep": [object()]}])
def test_what_differs_from_call_to_call_or_is_unknown_has_no_form(value: object) -> None:
    with pytest.raises(Formless):
        told({"sample": torch.ones(1), "value": value})


def test_examples_have_the_form_that_they_are_made_of() -> None:
    arguments = {
        "sample": torch.ones(2, 3),
        "list": [torch.ones(1).long(), None],
        "tuple": (True, "x"),
        "dict": {"deep": torch.ones(4, dtype=torch.bfloat16)},
    }
    made = example(form_of(arguments), CPU)
    assert form_of(made) == form_of(arguments)
    assert made["list"][0].dtype == torch.int64 and isinstance(made["tuple"], tuple)


def test_tensors_are_laid_out_as_in_the_example() -> None:
    strange = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert contiguous({"deep": [(strange,)]})["deep"][0][0].is_contiguous()


@pytest.fixture
def unet() -> Iterator[UNet2DConditionModel]:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        yield model


class Calls:
    """A module's own forward, counted."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.count = 0
        self._forward = module.forward

    def __call__(self, arguments: dict[str, object]) -> object:
        self.count += 1
        return self._forward(**arguments)


def arguments(rows: int = 2, seed: int = 0) -> dict[str, object]:
    noise = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    words = torch.ones(rows, 3, 8)
    return {"sample": noise, "timestep": torch.arange(rows) + 1, "encoder_hidden_states": words, "return_dict": False}


def compiled_in(folder: Path, unet: UNet2DConditionModel) -> tuple[CompiledModule, Calls]:
    plain = Calls(unet)
    return CompiledModule(unet, plain, "UNet2DConditionModel-test", Compiler(folder, CPU, "here")), plain


def until_proven(module: CompiledModule, timeout: float = 240) -> None:
    end = time.monotonic() + timeout
    while not any(candidate.proven for candidate in module._forms.values()):
        assert time.monotonic() < end, "nothing was compiled"
        module(arguments())
        time.sleep(0.05)


@pytest.mark.slow  # a minute of torch.compile; the others of this file have something else in its place
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_what_comes_often_is_compiled_takes_over_and_is_there_after_a_restart(
    tmp_path: Path, unet: UNet2DConditionModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hub.worker")
    module, plain = compiled_in(tmp_path / "compiled", unet)
    for _ in range(OFTEN):
        module(arguments())
    assert plain.count == OFTEN  # its own forward serves while another process compiles
    until_proven(module)
    before = plain.count
    got = module(arguments(seed=7))[0]
    assert plain.count == before
    assert torch.allclose(got, unet(**arguments(seed=7))[0], atol=1e-5)
    module(arguments(rows=1))  # another form
    assert plain.count == before + 1

    files = list((tmp_path / "compiled").glob("*.bin"))
    assert len(files) == 1 and not list((tmp_path / "compiled").glob("*.json"))
    again, _ = compiled_in(tmp_path / "compiled", unet)
    for _ in range(OFTEN):
        again(arguments())
    until_proven(again, timeout=30)
    assert caplog.text.count("compiling a forward in the background") == 1


def test_code_that_another_user_may_have_written_is_not_loaded(tmp_path: Path) -> None:
    kept = tmp_path / "kept.bin"
    kept.write_bytes(b"not looked at")
    for file, folder in ((0o666, 0o700), (0o600, 0o777)):
        kept.chmod(file)
        tmp_path.chmod(folder)
        with pytest.raises(PermissionError, match="another user"):
            load(kept)


def test_a_kept_forward_that_cannot_be_loaded_is_compiled_anew(
    tmp_path: Path, unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = []

    def make(self: Compiler, order: compiling.Order, name: str) -> object:
        made.append(order.file)
        return lambda module, given: module(**given)

    monkeypatch.setattr(Compiler, "_made", make)
    first, _ = compiled_in(tmp_path, unet)
    until_proven(first, timeout=30)
    Path(made[0]).write_bytes(b"from another version")
    again, _ = compiled_in(tmp_path, unet)
    until_proven(again, timeout=30)
    assert "that was kept cannot be used" in caplog.text
    assert made == [made[0]] * 2 and not Path(made[0]).exists()


def test_an_order_that_cannot_be_given_is_not_the_requests_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = torch.nn.Linear(2, 2)  # has no config
    module = CompiledModule(plain, lambda given: plain(**given), "Linear-test", Compiler(tmp_path, CPU, "here"))
    for _ in range(OFTEN + 1):
        assert module({"input": torch.ones(1, 2)}).shape == (1, 2)
    assert "Linear-test: not compiled" in caplog.text


def test_the_compilers_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    note = tmp_path / "order.json"
    os.mkfifo(note)  # it would wait for its order for ever
    command = [sys.executable, "-P", "-m", "hub.engine.precompile", str(note)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert child.stdin is not None
    time.sleep(1)
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(60) == 1


def test_what_cannot_be_compiled_goes_on_as_it_was(
    tmp_path: Path, unet: UNet2DConditionModel, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")  # no folder can be made here
    module, plain = compiled_in(tmp_path / "file" / "compiled", unet)
    for _ in range(OFTEN + 3):
        module(arguments())
    end = time.monotonic() + 30
    while "its own forward goes on" not in caplog.text and time.monotonic() < end:
        time.sleep(0.05)
    module(arguments())
    assert "UNet2DConditionModel-test: not compiled, its own forward goes on" in caplog.text
    assert plain.count == OFTEN + 4


@pytest.mark.parametrize(
    ("compiled", "words"),
    [
        (lambda module, given: (module(**given)[0] * 1.5,), "away from the module's own"),
        (lambda module, given: (module(**given)[0] * torch.nan,), "away from the module's own"),
        (lambda module, given: None, "gives something else"),
        (lambda module, given: 1 / 0, "failed (ZeroDivisionError"),
    ],
    ids=["other numbers", "no numbers", "nothing", "an error"],
)
def test_a_compiled_forward_that_is_wrong_is_dropped_before_anybody_gets_its_output(
    tmp_path: Path,
    unet: UNet2DConditionModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    compiled: object,
    words: str,
) -> None:
    monkeypatch.setattr(Compiler, "_made", lambda self, order, name: compiled)
    module, _ = compiled_in(tmp_path, unet)
    wanted = unet(**arguments())[0]
    end = time.monotonic() + 30
    while words not in caplog.text:
        assert time.monotonic() < end
        assert torch.equal(module(arguments())[0], wanted)
    assert torch.equal(module(arguments())[0], wanted)


def test_memory_that_runs_out_is_not_the_compiled_forwards_fault(
    tmp_path: Path, unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(module: object, given: object) -> object:
        raise torch.OutOfMemoryError

    module, _ = compiled_in(tmp_path, unet)
    module(arguments())
    (candidate,) = module._forms.values()
    candidate.compiled = full
    with pytest.raises(torch.OutOfMemoryError):
        module(arguments())
    assert candidate.compiled is full
