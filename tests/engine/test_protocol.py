from __future__ import annotations

import asyncio
import pickle
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.engine.protocol import (
    MAX_FRAME,
    Cancel,
    CannotStart,
    DeviceMemory,
    EngineModel,
    Failed,
    Finished,
    FromWorker,
    Generate,
    HeldModel,
    HeldModule,
    Load,
    Memory,
    Notice,
    Picture,
    Ping,
    Pong,
    Previewed,
    Ready,
    Settled,
    Stepped,
    ToWorker,
    Unload,
    from_worker,
    pack,
    read_frame,
    receive_frame,
    to_worker,
)
from hub.types import MAX_SEED, Size

GENERATE = Generate(
    id=1,
    model=EngineModel("small", "/weights/small", "float32"),
    task="text-to-image",
    prompt="a cat 🐈 \0 \n",
    seeds=[0, MAX_SEED],
    native=Size(64, 32),
    output=Size(640, 320),
    num_inference_steps=20,
    guidance_scale=7.5,
)
TO_WORKER: list[ToWorker] = [
    GENERATE,
    msgspec.structs.replace(
        GENERATE,
        task="image-to-image",
        negative_prompt="dogs",
        strength=0.5,
        images=[Picture(640, 200, bytes(range(256)) * 1500), Picture(1, 1, b"rgb")],
        arguments={"true_cfg_scale": 2.5, "clean_caption": False},
        scheduler="DDIMScheduler",
        owner="ann",
        strict=True,
        progress=True,
    ),
    msgspec.structs.replace(
        GENERATE,
        task="inpainting",
        images=[Picture(1, 1, bytes(range(256)))],
        mask=bytes(100),
        original=bytes(300),
        original_mask=b"\xff" * 100,
        output_format="webp",
        output_compression=0,
        partial_images=3,
    ),
    Cancel(2**63 - 1),
    Load(7, EngineModel("small", "/models/small", "auto", keep_alive=0), True),
    Unload(8, ["small"]),
    Ping(),
]
FROM_WORKER: list[FromWorker] = [
    Ready("cuda:0"),
    Ready("cuda:1", [DeviceMemory("cuda:1", 80 << 30, 79 << 30), DeviceMemory("cuda:0", 24 << 30, 24 << 30)]),
    Memory(
        DeviceMemory("cuda:1", 80 << 30, 79 << 30),
        5 << 30,
        None,
        [HeldModel("small", 1.5, 2.5, -1, False, 2, [HeldModule("unet", "UNet2DConditionModel", 5 << 30, 5 << 30)])],
        tried="large",
    ),
    Settled(8, ["small"], ["large"]),
    CannotStart("no CUDA device"),
    Pong(),
    Stepped(1, 3, 20),
    Previewed(1, 9, 2, bytes(range(256)) * 100),
    Finished(1, [b"", bytes(range(256)) * 4000], [Notice("size", "drew 64x64"), Notice("prompt", "too long")]),
    Finished(1, [], [], 0.125),
    Failed(1, "invalid", "no", "prompt"),
    Failed(1, "failed", "no"),
    Failed(1, "unusable", "no"),
]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    theirs.settimeout(20)
    with ours, theirs:
        yield ours, theirs


def decode(body: bytes, message: ToWorker | FromWorker) -> Any:
    return (to_worker if isinstance(message, ToWorker) else from_worker).decode(body)


@pytest.mark.parametrize("message", [*TO_WORKER, *FROM_WORKER])
def test_a_frame_comes_out_of_a_blocking_socket_as_it_went_in(
    pair: tuple[socket.socket, socket.socket], message: ToWorker | FromWorker
) -> None:
    ours, theirs = pair
    sender = threading.Thread(target=ours.sendall, args=(pack(message),))
    sender.start()
    body = receive_frame(theirs)
    sender.join()
    assert body is not None
    assert decode(body, message) == message


@pytest.mark.parametrize("message", [*TO_WORKER, *FROM_WORKER])
def test_a_frame_comes_out_of_a_stream_as_it_went_in(message: ToWorker | FromWorker) -> None:
    async def main() -> bytes:
        ours, theirs = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=ours)
        reader, other = await asyncio.open_connection(sock=theirs)
        writer.write(pack(message))
        body, _ = await asyncio.gather(read_frame(reader), writer.drain())
        for each in (writer, other):
            each.close()
            await each.wait_closed()
        return body

    assert decode(asyncio.run(main()), message) == message


def test_frames_in_one_packet_and_frames_in_pieces_are_told_apart(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    stream = b"".join(pack(message) for message in FROM_WORKER)

    def send() -> None:
        ours.sendall(stream)
        for index in range(200):
            ours.sendall(stream[index : index + 1])
        ours.sendall(stream[200:])
        ours.close()

    sender = threading.Thread(target=send)
    sender.start()
    received = []
    while (body := receive_frame(theirs)) is not None:
        received.append(from_worker.decode(body))
    sender.join()
    assert received == FROM_WORKER * 2


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 5, -1])
def test_a_stream_that_ends_at_or_within_a_frame_gives_no_frame(
    pair: tuple[socket.socket, socket.socket], kept: int
) -> None:
    ours, theirs = pair
    part = pack(Ready("cpu"))[:kept]
    ours.sendall(part)
    ours.close()
    assert receive_frame(theirs) is None

    async def main() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(part)
        reader.feed_eof()
        with pytest.raises(asyncio.IncompleteReadError):
            await read_frame(reader)

    asyncio.run(main())


@pytest.mark.parametrize("length", [MAX_FRAME + 1, 2**32 - 1, int.from_bytes(b"GET ", "big")])
def test_a_length_beyond_the_limit_is_refused_before_any_memory_is_taken(
    pair: tuple[socket.socket, socket.socket], length: int
) -> None:
    ours, theirs = pair
    ours.sendall(struct.pack(">I", length))
    with pytest.raises(ValueError, match="larger than any"):
        receive_frame(theirs)

    async def main() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(struct.pack(">I", length))
        reader.feed_eof()
        with pytest.raises(ValueError, match="larger than any"):
            await read_frame(reader)

    asyncio.run(main())


def encode(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


WISH: list[Any] = msgspec.msgpack.decode(encode(GENERATE))


def wish(index: int, value: Any) -> bytes:
    """The frame of GENERATE with one of its fields replaced."""
    return encode([*WISH[:index], value, *WISH[index + 1 :]])


def test_the_fields_are_where_the_next_test_thinks() -> None:
    assert to_worker.decode(encode(WISH)) == GENERATE
    assert (WISH[0], WISH[1], WISH[3], WISH[5]) == ("Generate", 1, "text-to-image", [0, MAX_SEED])
    assert WISH[16:23] == ["png", 100, 0, None, {}, [], False]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        encode(None),
        encode("Generate"),
        encode({"type": "Cancel", "id": 1}),
        encode([]),
        encode(["Cancel"]),
        encode(["Cancel", "1"]),
        encode(["Cancel", 1.5]),
        encode(["Cancel", None]),
        encode(["Restart", 1]),
        encode(["__import__", "os"]),
        encode(["Cancel", 1]) + b"\x00",
        encode(Ready("cpu")),
        encode(WISH[:8]),
        wish(1, "1"),
        wish(2, ["small", "/weights"]),
        wish(2, ["small", 5, "float32"]),
        wish(3, "text-to-video"),
        wish(4, b"bytes"),
        wish(5, [0, "1"]),
        wish(5, [1.5]),
        wish(6, [64]),
        wish(6, "64x64"),
        wish(8, 2.5),
        wish(9, "7.5"),
        wish(12, "not bytes but text"),
        wish(13, "not bytes but text"),
        wish(16, "gif"),
        wish(17, "100"),
        wish(18, 1.5),
        wish(19, 1),
    ],
)
def test_a_frame_of_other_types_is_refused_by_the_worker(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        to_worker.decode(body)


@pytest.mark.parametrize(
    "body",
    [
        encode(GENERATE),
        encode(Cancel(1)),
        encode(["Ready", 1]),
        encode(["Stepped", 1, 2]),
        encode(["Stepped", 1, 2, "3"]),
        encode(["Previewed", 1, 0, 0]),
        encode(["Previewed", 1, 0, 0, "text"]),
        encode(["Finished", 1, ["text"], []]),
        encode(["Finished", 1, [b"png"], [["size"]]]),
        encode(["Failed", 1, "invalid", None]),
        encode(["Failed", 1, "invalid", "no", 5]),
    ],
)
def test_a_frame_of_other_types_is_refused_by_the_api_process(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        from_worker.decode(body)


class Marker:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_in_a_frame_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        poison = pickle.dumps(Marker(marker), protocol)
        for body in (
            poison,
            encode(msgspec.msgpack.Ext(1, poison)),
            encode(["Cancel", msgspec.msgpack.Ext(1, poison)]),
        ):
            for decoder in (to_worker, from_worker):
                with pytest.raises(msgspec.DecodeError):
                    decoder.decode(body)
        assert to_worker.decode(wish(13, poison)) == msgspec.structs.replace(GENERATE, mask=poison)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Marker(marker)))
    assert marker.exists(), "the marker works"


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: encode(GENERATE)[:-20] + tail))
def test_any_other_bytes_are_a_known_message_or_an_error(body: bytes) -> None:
    for decoder, kinds in ((to_worker, ToWorker), (from_worker, FromWorker)):
        try:
            message = decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        assert isinstance(message, kinds)
