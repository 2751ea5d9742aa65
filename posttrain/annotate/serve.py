"""The server process: port, address, and end by Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

from filelock import FileLock, Timeout

from posttrain.annotate.answers import answers_path
from posttrain.annotate.session import Session
from posttrain.console import print_plain
from posttrain.errors import PosttrainError
from posttrain.training.signals import Signals

PORT = 8765


@contextlib.contextmanager
def exclusive_access(out: Path) -> Iterator[None]:
    """In the block, no other process appends to the answers for `out`; raises `PosttrainError` if one does."""
    answers = answers_path(out)
    held = FileLock(answers.with_name(f".{answers.name}.lock"))
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise PosttrainError(f"--out={out}: another process is asking for these answers; open its page") from None
    except OSError as error:
        raise PosttrainError(f"--out={out}: cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def bind(host: str, port: int | None) -> Iterator[socket.socket]:
    """A listening socket at `port`; None: the usual port or, if in use, a free one. Raises `PosttrainError`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port or PORT, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise PosttrainError(f"--host={host}: no such address: {error}") from error
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            try:
                listening.bind(address)
                # Listen at once, since others can still bind a port that is only bound.
                listening.listen()
            except OSError as error:
                if error.errno != errno.EADDRINUSE or port is not None:
                    raise
                listening.bind((address[0], 0, *address[2:]))
                listening.listen()
        except OSError as error:
            key = f"--port={port or PORT}" if error.errno in (errno.EADDRINUSE, errno.EACCES) else f"--host={host}"
            raise PosttrainError(f"{key}: {error.strerror}; choose another") from error
        yield listening


def run(session: Session, listening: socket.socket, host: str, token: str | None) -> None:
    """Serve until SIGINT or SIGTERM. If other machines can reach the page, it needs a token, by default a new one."""
    import uvicorn

    from posttrain.annotate.security import loopback
    from posttrain.annotate.server import app

    port = listening.getsockname()[1]
    if token is None and not loopback(host):
        token = secrets.token_urlsafe(24)
    settings = uvicorn.Config(
        app(session, host, port, token),
        log_level="warning",
        access_log=False,  # it would show the token
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    print_plain(f"open     {address(host, port, token)}")
    if not loopback(host):
        print_plain("         not encrypted: in a network you do not trust, use ssh -L instead")
    # uvicorn raises the signal again that ended it.
    with Signals():
        uvicorn.Server(settings).run(sockets=[listening])


def address(host: str, port: int, token: str | None) -> str:
    """The address to open in a browser."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?{urlencode({'token': token})}" if token else "")
