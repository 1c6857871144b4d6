"""The server process: its socket, and its shutdown."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from pangu_jax.core.errors import InputError

SLACK = 5  # seconds for clients to read the final message


def bound(host: str, port: int) -> socket.socket:
    """Returns a socket bound to the address, which does not listen yet.

    Args:
      host: a name or an address.
      port: 0 takes a free one.

    Raises:
      InputError: the address is unavailable.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"--port must be 0 to {2**16 - 1}, got {port}")
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(kind, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} is no address of this machine: {error}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return found


class Server(uvicorn.Server):
    """Serves until a signal or `stop`; then finishes open requests, for a limited time.

    A second signal ends the process at once.
    """

    def __init__(self, app: Any, *, drain: float, end: Callable[[str], None], ready=lambda: None):
        """Prepares a server; it does not listen yet.

        Args:
          app: the ASGI application.
          drain: seconds in which open requests may end by themselves.
          end: called after that, with a message for the requests that are left.
          ready: called when clients can connect.
        """
        super().__init__(
            uvicorn.Config(
                _quiet(app),
                lifespan="off",
                log_config=None,
                access_log=False,
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=int(drain + SLACK) + 1,
            )
        )
        self._drain, self._end, self._ready = drain, end, ready

    def stop(self) -> None:
        """Accepts no more and ends; may be called from any thread."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets requests end, and then ends them."""
        why = "the server is ending"
        timer = asyncio.get_running_loop().call_later(self._drain, self._end, why)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Makes signals ask this server to stop; that is not a failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = signal.SIGINT, signal.SIGTERM
        before = {kind: signal.signal(kind, self._asked) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _asked(self, number: int, frame: object) -> None:
        if self.should_exit:
            os._exit(128 + number)  # nothing may hold it up
        self.stop()


def _quiet(app: Any) -> Any:
    """The application, with canceled requests not counted as errors: nobody reads the answer."""

    async def call(scope, receive, send):
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return call
