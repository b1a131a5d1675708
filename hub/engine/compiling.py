"""Compiled forwards. A module's own forward serves at once; what comes often is compiled in the background and takes
over when it has proved itself. What was compiled is kept in the cache folder for the next start.

One at a time, in a process of its own (see precompile), for each form of arguments that a module meets: another batch
size or picture size is another form.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct

from hub import __version__
from hub.engine.devices import use
from hub.engine.forms import Form, Formless, contiguous, told
from hub.engine.outputs import Unknown, distance

log = logging.getLogger("hub.worker")

OFTEN = 16
"""Forwards of a form before it is worth a compilation: less than a picture's steps."""
MAX_FORMS = 16
"""Forms of one module that are compiled; the others stay with its own forward."""
TIMEOUT = 1800.0
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Mean difference of the outputs, as a share of their mean size, that rounding explains."""

Forward = Callable[..., Any]
Plain = Callable[[dict[str, Any]], Any]


class Order(Struct):
    """What to compile, and the file to put it into. `module` is the name of diffusers' class, `config` its JSON;
    `other_dtypes` are those of parameters and buffers that are not in `dtype`."""

    module: str
    config: str
    dtype: str
    other_dtypes: dict[str, str]
    device: str
    threads: int
    form: Form
    file: str


class Candidate:
    """A form of arguments: how often it came, and the `compiled` forward, once there is one that may be tried."""

    def __init__(self) -> None:
        self.seen = 0
        self.ordered = False
        self.proven = False
        self.compiled: Forward | None = None
        self.file: Path | None = None


class CompiledModule:
    """One module's forwards. The device thread alone calls it."""

    def __init__(self, module: Any, plain: Plain, name: str, compiler: Compiler) -> None:
        """`plain` is the module's own forward, which takes its arguments as a mapping; `name` is the module's among
        others (see MeetingPoint)."""
        self._module = module
        self._plain = plain
        self._name = name
        self._compiler = compiler
        self._forms: dict[bytes, Candidate] = {}
        self._ordered = 0

    def __call__(self, arguments: dict[str, Any]) -> Any:
        """The output for these arguments, from whichever forward is ready."""
        candidate = self._candidate(arguments)
        if candidate is None or candidate.compiled is None:
            return self._plain(arguments)
        try:
            output = candidate.compiled(self._module, contiguous(arguments))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._drop(candidate, f"failed ({type(error).__name__}: {error})")
            return self._plain(arguments)
        if candidate.proven:
            return output
        wanted = self._plain(arguments)
        self._prove(candidate, output, wanted)
        return wanted

    def _prove(self, candidate: Candidate, output: Any, wanted: Any) -> None:
        """On its first call it is compared with the module's own forward."""
        try:
            difference = float(distance(output, wanted))
        except (Unknown, ValueError) as error:
            self._drop(candidate, f"gives something else ({error or type(error).__name__})")
            return
        if not difference <= CLOSE[self._module.dtype]:  # nor is NaN
            self._drop(candidate, f"is {difference:.2g} away from the module's own")
            return
        candidate.proven = True
        log.info("%s: a compiled forward takes over (%.1g away from the module's own)", self._name, difference)

    def _candidate(self, arguments: dict[str, Any]) -> Candidate | None:
        try:
            form = told(arguments)
        except Formless:
            return None
        candidate = self._forms.setdefault(form, Candidate())
        candidate.seen += 1
        if candidate.seen >= OFTEN and not candidate.ordered and self._ordered < MAX_FORMS:
            candidate.ordered = True
            self._ordered += 1
            try:
                self._compiler.order(self._module, self._name, form, candidate)
            except Exception as error:  # a denoiser without a config, or no thread: not the request's fault
                log.warning("%s: not compiled, its own forward goes on (%s)", self._name, error)
        return candidate

    def _drop(self, candidate: Candidate, why: str) -> None:
        candidate.compiled = None
        if candidate.file is not None:
            with contextlib.suppress(OSError):
                candidate.file.unlink()
        log.warning("%s: the compiled forward %s; the module's own is used", self._name, why)


class Compiler:
    """The worker's: carries out orders one after another, each on a thread that ends with it."""

    def __init__(self, folder: Path, device: torch.device, where: str) -> None:
        """`folder` keeps what was compiled; `where` names the hardware and torch."""
        self._folder = folder
        self._device = device
        others = f"diffusers {importlib.metadata.version('diffusers')}, hub {__version__}, Python {sys.version}"
        self._where = f"{where} {device}, CUDA {torch.version.cuda}, {others}"
        self._one = threading.Lock()

    def order(self, module: Any, name: str, form: bytes, candidate: Candidate) -> None:
        """Has a forward compiled, or fetched if it was before; the candidate gets it when it is there."""
        dtype = str(module.dtype).removeprefix("torch.")
        tensors = [*module.named_parameters(), *module.named_buffers()]
        others = {
            key: str(tensor.dtype).removeprefix("torch.") for key, tensor in tensors if tensor.dtype != module.dtype
        }
        said = f"{self._where} {name} {dtype} {sorted(others.items())} ".encode() + form
        candidate.file = self._folder / f"{name}-{hashlib.blake2b(said, digest_size=12).hexdigest()}.bin"
        order = Order(
            module=type(module).__name__,
            config=module.to_json_string(),
            dtype=dtype,
            other_dtypes=others,
            device=str(self._device),
            threads=torch.get_num_threads(),
            form=msgspec.json.decode(form),
            file=str(candidate.file),
        )
        threading.Thread(target=self._work, args=(order, name, candidate), name="compiler", daemon=True).start()

    def _work(self, order: Order, name: str, candidate: Candidate) -> None:
        with self._one:
            try:
                use(self._device)  # what it loads belongs there
                candidate.compiled = self._kept(order, name) or self._made(order, name)
            except Exception as error:
                log.warning("%s: not compiled, its own forward goes on (%s)", name, error)

    def _kept(self, order: Order, name: str) -> Forward | None:
        """One that was compiled before, as long as torch still takes it."""
        file = Path(order.file)
        if not file.is_file():
            return None
        try:
            return load(file)
        except Exception as error:
            log.warning("%s: a compiled forward that was kept cannot be used (%s)", name, error)
            file.unlink(missing_ok=True)
            return None

    def _made(self, order: Order, name: str) -> Forward:
        log.info("%s: compiling a forward in the background", name)
        file = Path(order.file)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sweep()
        note = file.with_suffix(f".{os.getpid()}.json")
        command = [sys.executable, "-P", "-m", "hub.engine.precompile", str(note)]
        try:
            note.write_bytes(msgspec.json.encode(order))
            with tempfile.TemporaryFile() as said:
                # Its standard input ends when this process does, and then so does it.
                with subprocess.Popen(  # noqa: S603  # our own module, and a file that we have named
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said
                ) as process:
                    try:
                        process.wait(TIMEOUT)
                    finally:
                        process.kill()
                said.seek(0)
                last = said.read().decode(errors="replace").strip().splitlines()[-1:]
        finally:
            note.unlink(missing_ok=True)
        if process.returncode:
            raise RuntimeError(last[0][:500] if last else f"the compiler ended with {process.returncode}")
        return load(file)

    def _sweep(self) -> None:
        """Deletes what a worker that was killed has left half-done. None of another one is that old."""
        for left in (*self._folder.glob("*.tmp"), *self._folder.glob("*.json")):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > TIMEOUT:
                    left.unlink()


def load(file: Path) -> Forward:
    """A compiled forward: takes the module, then its arguments. The file is code: one that others than the hub's user
    may have written is refused."""
    with file.open("rb") as stream:
        for status in (file.parent.stat(), os.fstat(stream.fileno())):
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                raise PermissionError(f"{file.name} could have been written by another user")
        return torch.compiler.load_compiled_function(stream)
