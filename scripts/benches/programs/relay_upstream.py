"""A provider that has its answer ready: `relay_upstream.py PORT PICTURE`, where the second is a PNG file.

POST /v1/images/generations answers with the picture in base64; POST /link/v1/images/generations with a URL of this
server, at which the picture is. All is prepared once, and the kernel copies it from where it lies: what a relay adds is
all that is measured.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import sys
import threading
from pathlib import Path


def whole(body: bytes, media_type: str) -> bytes:
    """A good answer, from its first byte to its last."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def serve(connection: socket.socket, answers: dict[bytes, bytes]) -> None:
    """Answers one client for as long as it likes."""
    had = bytearray()
    with connection, contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(1 << 16):
            had += data
            end = had.find(b"\r\n\r\n")
            if end < 0:
                continue
            head = bytes(had[:end]).lower()
            rest = head.partition(b"content-length:")[2]
            length = int(rest.split(b"\r\n", 1)[0]) if rest else 0
            if len(had) >= end + 4 + length:
                had.clear()  # no client sends the next request before it has this answer
                connection.sendall(answers[head.split(b" ", 2)[1]])


def main(port: int, picture: bytes) -> None:
    """Until it is told to end."""
    inline = b'{"created": 1, "data": [{"b64_json": "' + base64.b64encode(picture) + b'"}]}'
    link = b'{"created": 1, "data": [{"url": "http://127.0.0.1:%d/picture.png"}]}' % port
    answers = {
        b"/v1/images/generations": whole(inline, "application/json"),
        b"/link/v1/images/generations": whole(link, "application/json"),
        b"/picture.png": whole(picture, "image/png"),
    }
    listener = socket.create_server(("127.0.0.1", port), backlog=256)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, answers), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]).read_bytes())
