"""What the API process and the worker say to each other.

A frame is a 4-byte big-endian length and a msgpack body: a tagged array of one of the Structs below. msgspec checks
every frame's types, and nothing can be executed by reading one (no pickle).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, Literal

import msgspec
from msgspec import Struct

from hub.loras import LoraFile
from hub.types import OutputFormat, Size, Task

MAX_FRAME = 1 << 30
_LENGTH = struct.Struct(">I")


class EngineModel(Struct, frozen=True, array_like=True):
    """Which weights to load and how: an absolute folder, or a file and the folder with its `config`; `components` that
    come from elsewhere, as name and absolute file or folder; what the manifest asks for: a dtype, a noise scheduler
    with changes to its configuration, `device`, the only one that may run it, whether to `compile` its denoiser; and
    what costs quality: the threshold to `skip` steps at, the absolute folder of a small `decoder`, and the
    `storage_dtype` or `quantization` of the denoiser's weights. `keep_alive`: seconds that it stays loaded without
    work, below 0 for ever, None as the settings say. `sha256`: what its files must hash to. `variant`: the safetensors
    that are read of components that have such."""

    id: str
    path: str
    dtype: str
    scheduler: str | None = None
    scheduler_options: tuple[tuple[str, str | int | float | bool | None], ...] = ()
    device: str | None = None
    compile: bool = False
    skip: float | None = None
    decoder: str | None = None
    storage_dtype: str | None = None
    keep_alive: float | None = None
    config: str | None = None
    components: tuple[tuple[str, str], ...] = ()
    quantization: str | None = None
    sha256: tuple[tuple[str, str], ...] = ()
    variant: str | None = None


class Picture(Struct, frozen=True, array_like=True):
    """A source picture: raw RGB bytes, row by row."""

    width: int
    height: int
    data: bytes


class WornLora(Struct, frozen=True, array_like=True):
    """A LoRA's file, and how much of it."""

    file: LoraFile
    weight: float


class Generate(Struct, frozen=True, array_like=True, tag=True, kw_only=True):
    """One request. Picture k of n is drawn from seeds[k] alone.

    `images` are the source pictures, those that are repainted or drawn along at exactly `native` size. `mask` says
    which part of the first may change: one byte per pixel of `native` size, 255 = change. `original` and
    `original_mask` are the same two at `output` size: where the mask is 0 the finished picture is the original itself.
    `arguments` are the manifest's own for every call of the pipeline. `scheduler` is the noise scheduler's class name,
    None for the model's own. `loras` change the model for this request alone.
    `strict`: fail instead of noting what the pipeline cannot honour. `owner` is whose turn
    the request takes. `label` names the request in logs. `progress`: send a Stepped after
    steps, a few times a second; there may be nobody who listens. `partial_images`: how many previews of each picture
    to send, as `Previewed`. `receipt`: write into each PNG what it follows from.
    """

    id: int
    model: EngineModel
    task: Task
    prompt: str
    seeds: list[int]
    native: Size
    output: Size
    num_inference_steps: int
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    strength: float | None = None
    images: list[Picture] = []
    mask: bytes | None = None
    original: bytes | None = None
    original_mask: bytes | None = None
    output_format: OutputFormat = "png"
    output_compression: int = 100
    partial_images: int = 0
    scheduler: str | None = None
    arguments: dict[str, Any] = {}
    loras: list[WornLora] = []
    strict: bool = False
    owner: str = ""
    progress: bool = False
    receipt: bool = False
    label: str = ""


class Cancel(Struct, frozen=True, array_like=True, tag=True):
    """The caller has gone: stop within one forward and answer nothing."""

    id: int


class Load(Struct, frozen=True, array_like=True, tag=True):
    """Have a model in memory before it is asked for; answered with Settled or Failed. `pinned`: whether it stays from
    now on, None as it was."""

    id: int
    model: EngineModel
    pinned: bool | None = None


class Unload(Struct, frozen=True, array_like=True, tag=True):
    """Unpin the models of these ids, or all, and give their memory back; those that have work, when that is done."""

    id: int
    models: list[str] | None = None


class Settled(Struct, frozen=True, array_like=True, tag=True):
    """A Load or an Unload was carried out, on these models; `later` it will be on those, which have work to do."""

    id: int
    models: list[str]
    later: list[str] = []


class Ping(Struct, frozen=True, array_like=True, tag=True):
    """Is the worker still there? Its reader answers with Pong at once, whatever the device computes."""


class DeviceMemory(Struct, frozen=True, array_like=True):
    """A device as torch names it (`cuda:0`), and its memory in bytes. Of a device that is not the worker's own, `free`
    is a guess: all."""

    name: str
    total: int
    free: int


class Ready(Struct, frozen=True, array_like=True, tag=True):
    """The worker has imported its libraries and takes requests. `devices`: its own, and others of its kind that the
    machine has."""

    device: str
    devices: list[DeviceMemory] = []


class HeldModule(Struct, frozen=True, array_like=True):
    """A model's module: its name in the pipeline, its class, the bytes of its weights, and how many of them are on the
    device. Modules that several models share are told with each."""

    name: str
    type: str
    bytes: int
    on_device: int


class HeldModel(Struct, frozen=True, array_like=True):
    """A model in memory `since` and last `used` (Unix seconds). `busy`: requests that it works on. For `keep_alive`
    and `pinned` see EngineModel and Load."""

    id: str
    since: float
    used: float
    keep_alive: float
    pinned: bool
    busy: int
    modules: list[HeldModule]


class Memory(Struct, frozen=True, array_like=True, tag=True):
    """What the worker holds, whenever that has changed. `weights`: bytes of weights on the device, and `spare`, those
    of idle models, which can leave; `limit`: what the hub may use of it. `uploads`: how often a module was brought to
    the device, and `uploaded`, the bytes. `tried`: the model that was just to be loaded, in vain if it is not among
    `models`."""

    device: DeviceMemory
    weights: int
    limit: int | None
    models: list[HeldModel]
    spare: int = 0
    uploads: int = 0
    uploaded: int = 0
    tried: str | None = None


class CannotStart(Struct, frozen=True, array_like=True, tag=True):
    """In Ready's stead, and the last frame: why, in words for the owner that clients may see, too."""

    reason: str


class Pong(Struct, frozen=True, array_like=True, tag=True):
    """The answer to a Ping."""


class Stepped(Struct, frozen=True, array_like=True, tag=True):
    """A request's denoising steps, done and in all, summed over its pictures."""

    id: int
    step: int
    steps: int


class Previewed(Struct, frozen=True, array_like=True, tag=True):
    """Picture `index` of a request as it looks so far, encoded like the finished one; `partial` counts from 0. Sent
    in order, and before the request's Finished."""

    id: int
    index: int
    partial: int
    image: bytes


class Notice(Struct, frozen=True, array_like=True):
    """Something that was asked for and could not be honoured: the parameter and the words."""

    param: str
    message: str

    def __str__(self) -> str:
        return f"{self.param}: {self.message}"


class Finished(Struct, frozen=True, array_like=True, tag=True):
    """A request's pictures as encoded files, in the order of its seeds. `device_seconds`: what its forwards took of the
    device, of those that it shared by its rows."""

    id: int
    images: list[bytes]
    notices: list[Notice]
    device_seconds: float = 0.0


class Failed(Struct, frozen=True, array_like=True, tag=True):
    """A request that ended without pictures. `kind` invalid: the caller can mend it; blocked: the model's own safety
    checker hid the picture; unusable: so is the model, for everybody; memory: it does not fit, and the words say what
    would; failed: the caller can do nothing."""

    id: int
    kind: Literal["invalid", "blocked", "unusable", "memory", "failed"]
    message: str
    param: str | None = None


ToWorker = Generate | Cancel | Load | Unload | Ping
Answer = Stepped | Previewed | Finished | Failed
"""What belongs to one request."""
FromWorker = Ready | CannotStart | Pong | Memory | Settled | Answer

to_worker = msgspec.msgpack.Decoder(ToWorker)
from_worker = msgspec.msgpack.Decoder(FromWorker)
_encoder = msgspec.msgpack.Encoder()


def pack(message: ToWorker | FromWorker) -> bytes:
    """A whole frame."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next frame's body; raises asyncio.IncompleteReadError at the end of the stream."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    _check(length)
    return await reader.readexactly(length)


def receive_frame(connection: socket.socket) -> bytes | None:
    """The same for a blocking socket; None at the end of the stream."""
    head = _receive(connection, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    _check(length)
    return _receive(connection, length)


def _receive(connection: socket.socket, count: int) -> bytes | None:
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        got = connection.recv_into(view)
        if not got:
            return None
        view = view[got:]
    return bytes(buffer)


def _check(length: int) -> None:
    if length > MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes is larger than any the protocol sends")
