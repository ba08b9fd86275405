"""Where members that train on other machines report: a port, and who came in by it."""

import contextlib
import queue
import secrets
import socket
import threading
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import (
    Client,
    Connection,
    answer_challenge,
    deliver_challenge,
)
from types import TracebackType
from typing import Self

# How often the thread that waits for members looks whether it is still wanted.
_LOOK_SECONDS = 0.5


class Reception:
    """A port of this machine for the time of a block; who has not its key is sent away.

    Attributes:
        address: host and port.
        key: shared by all that may come in.
    """

    def __init__(self, host: str) -> None:
        self._socket = socket.create_server((host, 0))
        self._socket.settimeout(_LOOK_SECONDS)
        self.address: tuple[str, int] = (host, self._socket.getsockname()[1])
        self.key = secrets.token_bytes(32)
        self._arrived: queue.SimpleQueue[tuple[int, Connection]] = queue.SimpleQueue()
        self._is_open = True
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        self._thread.join()
        self._socket.close()
        for _, connection in self.arrived():
            connection.close()

    def _wait(self) -> None:
        while self._is_open:
            with contextlib.suppress(TimeoutError):
                accepted, _ = self._socket.accept()
                # One that says nothing keeps nobody else waiting.
                threading.Thread(target=self._greet, args=(accepted,), daemon=True).start()

    def _greet(self, accepted: socket.socket) -> None:
        connection = _connection(accepted)
        try:
            deliver_challenge(connection, self.key)
            answer_challenge(connection, self.key)
            self._arrived.put((connection.recv(), connection))
        except (AuthenticationError, EOFError, OSError):
            connection.close()

    def arrived(self) -> Iterator[tuple[int, Connection]]:
        """Who came in since the last time: the number that they gave, and their connection."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._arrived.get_nowait()


def report(address: tuple[str, int], key: bytes, number: int) -> Connection:
    """Come in at `address` as `number`.

    Raises:
        OSError, EOFError: nobody is there.
    """
    connection: Connection = Client(address, authkey=key)
    _answer_soon(connection)
    connection.send(number)
    return connection


def _connection(accepted: socket.socket) -> Connection:
    accepted.settimeout(None)
    connection = Connection(accepted.detach())
    _answer_soon(connection)
    return connection


def _answer_soon(connection: Connection) -> None:
    """Small messages go at once, and a machine that is gone without a word is noticed."""
    with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as handle:
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
