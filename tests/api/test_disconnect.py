"""A client that leaves: its work stops, and the next request does not wait for it."""

from __future__ import annotations

import json
import socket
import time

import psutil

from tests.api.conftest import generate
from tests.conftest import Server, wait_for


def test_work_stops_when_the_client_has_gone(server: Server) -> None:
    generate(server, prompt="a red circle", size="64x64", num_inference_steps=1)  # the model is loaded
    (worker,) = psutil.Process(server.process.pid).children()
    body = json.dumps({"prompt": "a red circle", "n": 10, "size": "1024x1024", "num_inference_steps": 150}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {server.url[7:]}\r\nContent-Type: application/json\r\n"
    host, port = server.url[7:].split(":")

    def busy(seconds: float) -> float:
        before, start = sum(worker.cpu_times()[:2]), time.monotonic()
        time.sleep(seconds)
        return (sum(worker.cpu_times()[:2]) - before) / (time.monotonic() - start)

    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: busy(0.3) > 0.3, timeout=30)
    wait_for(lambda: busy(0.3) < 0.1, timeout=10)
    assert "its work is cancelled" in server.log.read_text()
    assert generate(server, prompt="a red circle", size="64x64", num_inference_steps=1).status == 200


def test_a_client_that_leaves_in_mid_upload_is_one_quiet_line_in_the_log(server: Server) -> None:
    host, port = server.url[7:].split(":")
    before = len(server.log.read_text())
    kinds = ("application/json", "multipart/form-data; boundary=x")
    for kind in kinds:
        head = f"POST /v1/images/edits HTTP/1.1\r\nHost: {server.url[7:]}\r\nContent-Type: {kind}\r\n"
        with socket.create_connection((host, int(port))) as client:
            client.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + b"x" * 500)
            time.sleep(0.2)  # it is being read
    wait_for(lambda: server.log.read_text()[before:].count("left while it sent") == len(kinds), timeout=10)
    told = server.log.read_text()[before:]
    assert "Traceback" not in told
    assert "ERROR" not in told
