"""Clients that ask for pictures and do next to nothing else: `relay_client.py`, told what to do on its standard input.

A line of JSON there, `{"port", "path", "headers", "body", "clients", "seconds" or "requests", "fetch"}`, and one back:
`{"seconds", "times"}`, with the time of each answer. Each client is a thread with a connection of its own and a buffer
that the kernel writes into. Every answer must be a whole 200; `fetch` also has the picture behind the answer's link.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn
from urllib.parse import urlsplit

LARGEST = 4 << 20


def fail(why: str) -> NoReturn:
    """Ends all clients."""
    print(why, file=sys.stderr, flush=True)
    os._exit(1)


class Connection:
    """To one server, kept."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._view = memoryview(bytearray(LARGEST))

    def ask(self, request: bytes) -> memoryview:
        """The answer's body, until the next one comes."""
        self._socket.sendall(request)
        had, view, start, length = 0, self._view, 0, 0
        while not start or had < start + length:
            read = self._socket.recv_into(view[had:])
            if not read:
                fail("a connection ended")
            had += read
            if not start:
                head, found, _ = bytes(view[: min(had, 8192)]).partition(b"\r\n\r\n")
                if found:
                    start = len(head) + 4
                    if not head.startswith(b"HTTP/1.1 200"):
                        fail(f"{head[:300]!r} {bytes(view[start:had])[:500]!r}")
                    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        return view[start : start + length]


def request_of(method: str, port: int, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """Its bytes."""
    host = f"Host: 127.0.0.1:{port}"
    lines = [f"{method} {path} HTTP/1.1", host, *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Load:
    """Some clients, all at once."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._request = request_of(
            "POST", order["port"], order["path"], order["headers"], json.dumps(order["body"]).encode()
        )
        self.times: list[float] = []
        self.sample = b""
        self._left = order.get("requests") or sys.maxsize
        self._lock = threading.Lock()
        self._end = 0.0

    def run(self) -> float:
        """Seconds for all."""
        threads = [threading.Thread(target=self._client) for _ in range(self._order["clients"])]
        start = time.perf_counter()
        self._end = start + self._order.get("seconds", 3600)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    def _client(self) -> None:
        others: dict[int, Connection] = {}
        connection = others[self._order["port"]] = Connection(self._order["port"])
        while time.perf_counter() < self._end and self._take():
            start = time.perf_counter()
            body = connection.ask(self._request)
            if self._order.get("fetch"):
                url = urlsplit(json.loads(bytes(body))["data"][0]["url"])
                port = int(url.port or 80)
                other = others.get(port) or others.setdefault(port, Connection(port))
                body = other.ask(request_of("GET", port, url.path, {}))
            self.times.append(time.perf_counter() - start)
            if not self.sample:
                self.sample = bytes(body)

    def _take(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0


def main() -> None:
    """One order after another."""
    for line in sys.stdin:
        order = json.loads(line)
        load = Load(order)
        seconds = load.run()
        if order.get("sample"):
            with open(order["sample"], "wb") as file:
                file.write(load.sample)
        print(json.dumps({"seconds": seconds, "times": load.times}), flush=True)


if __name__ == "__main__":
    main()
