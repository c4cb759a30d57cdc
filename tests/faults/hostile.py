"""Hostile clients, from their own address, for as long as a test wants them."""

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Self


_REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"
# Closing with this resets the connection instead of ending it.
_RESET = struct.pack("ii", 1, 0)
# Seconds between two actions of one client, and how often all of them are polled.
_DEED_SECONDS = 0.3
_LOOK_SECONDS = 0.05


class _Client:
    """One connection: `silent` says nothing, `dribbling` a byte at a time, `slow` takes a byte at a time,
    `greedy` asks again and again and takes nothing, `resetting` asks and cuts the line."""

    def __init__(self, kind: str, address: tuple[str, int], source: str) -> None:
        self.kind = kind
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.bind((source, 0))
        self.socket.setblocking(False)
        self.socket.connect_ex(address)
        self.sent = 0
        self.due = time.monotonic() + _DEED_SECONDS

    def act(self) -> bool:
        """Act once; False when the connection is closed."""
        self.due = time.monotonic() + _DEED_SECONDS
        try:
            if self.kind == "dribbling":
                self.socket.send(_REQUEST[self.sent % 20 : self.sent % 20 + 1])
                self.sent += 1
            elif self.kind == "greedy":
                self.socket.send(_REQUEST * 20)
            elif self.kind == "slow":
                if not self.sent:
                    self.sent = self.socket.send(_REQUEST)
                elif not self.socket.recv(1):
                    return False
            elif self.kind == "resetting":
                self.socket.send(_REQUEST)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        return not self._ended()

    def _ended(self) -> bool:
        """Whether the server has closed; a silent client looks without taking anything."""
        with suppress(BlockingIOError):
            return not self.socket.recv(1, socket.MSG_PEEK)
        return False

    def close(self) -> None:
        self.socket.close()


class Hostile:
    """Keeps this many clients of every kind connected; one that is cut off reconnects at once."""

    KINDS = ("silent", "dribbling", "slow", "greedy", "resetting")

    def __init__(self, address: tuple[str, int], each: int, source: str = "127.0.0.2") -> None:
        self._address = address
        self._source = source
        self._kinds = self.KINDS * each
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        clients = [self._connect(kind) for kind in self._kinds]
        while not self._ended.wait(_LOOK_SECONDS):
            now = time.monotonic()
            for place, client in enumerate(clients):
                if client.due <= now:
                    try:
                        goes_on = client.act()
                    except OSError:
                        goes_on = False
                    if not goes_on:
                        client.close()
                        clients[place] = self._connect(client.kind)
        for client in clients:
            client.close()

    def _connect(self, kind: str) -> _Client:
        self.connections += 1
        return _Client(kind, self._address, self._source)
