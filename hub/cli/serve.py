"""`hub serve`."""

from __future__ import annotations

import contextlib
import ctypes
import socket
from pathlib import Path
from types import FrameType

import click

from hub import __version__
from hub.cli.common import config_option, settings_from, told_plainly

FREED = 32 << 20
"""Bytes of freed memory that the process keeps."""
LARGE = 8 << 20
"""Bytes from which on memory is had from the system, and given back at once."""
DRAIN = 5.0
"""Seconds that running requests have to finish when the server is told to end."""


def keep_freed_memory() -> None:
    """Has glibc keep some of what is freed. Each answer with a picture takes a few megabytes for some milliseconds, and
    to have them from the system anew, page by page, would be a tenth of the work on an answer that is relayed."""
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, FREED)
        mallopt(mmap_threshold, LARGE)


@click.command()
@config_option
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port (default 8000; 0 takes a free one).")
def serve(config: Path | None, host: str | None, port: int | None) -> None:
    """Serve the API until interrupted."""
    with told_plainly():
        settings = settings_from(config, host=host, port=port)
        settings.check_bind()
        from hub.app import create_app

        app = create_app(settings)
    import uvicorn

    keep_freed_memory()
    wiring = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning" if settings.log_level == "info" else settings.log_level,
        access_log=False,  # it would write signed links to the log
        proxy_headers=False,  # links are built from public_url, never from forwarded headers
        server_header=False,
        loop="asyncio" if settings.offline else "auto",  # uvloop's sockets are not Python's: the guard sees none
        timeout_graceful_shutdown=10,
        timeout_keep_alive=75,
    )
    try:
        bound = wiring.bind_socket()  # before the engine starts: a port in use is told at once
    except SystemExit:  # uvicorn has written why
        words = f"cannot listen on {settings.host}, port {settings.port}. Choose another with --host and --port."
        raise click.ClickException(words) from None
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not, for a socket that it did not make
    port = bound.getsockname()[1]
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    click.echo(f"Hub {__version__} listens on http://{shown}:{port}   (Ctrl-C ends it)", err=True)

    class Server(uvicorn.Server):
        """Tells the hub at once that it ends, so that long work is answered and not cut off."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.hub.engine.end_soon(DRAIN)
            super().handle_exit(sig, frame)

    with contextlib.suppress(KeyboardInterrupt):
        Server(wiring).run(sockets=[bound])
