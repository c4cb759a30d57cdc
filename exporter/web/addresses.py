"""Listen addresses as exporters write them, and the sockets behind them."""

import contextlib
import errno
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exporter.errors import AddressUnavailableError, ListenError


_PORT_MAX = 65535
_LISTEN_FDS_START = 3  # SD_LISTEN_FDS_START of sd-daemon.h
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")


def parse_listen_address(text: str) -> tuple[str, int]:
    """Split `:9907`, `127.0.0.1:9907`, `[::1]:9907` or `localhost:0` into host and port.

    The host is empty for all addresses of the machine, port 0 lets the kernel choose one.
    Raises ListenError, naming the text and what is wrong with it.
    """
    if text.startswith("unix:"):
        raise ListenError(
            f"listen address '{text}': Unix sockets are not supported; use a TCP address, or a "
            "socket unit with --web.systemd-socket"
        )
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        hint = f"; for all addresses write ':{text}'" if text.isdecimal() else ""
        raise ListenError(f"listen address '{text}': the port is missing{hint}")
    if not (port.isascii() and port.isdecimal()):
        raise ListenError(f"listen address '{text}': the port must be a number, got '{port}'")
    if int(port[:9]) > _PORT_MAX:
        raise ListenError(f"listen address '{text}': the port must be at most {_PORT_MAX}")
    return _parse_host(text, host), int(port)


def _parse_host(text: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ListenError(
                f"listen address '{text}': '{host[1:-1]}' is not an IPv6 address"
            ) from None
        return host[1:-1]
    if ":" in host:
        raise ListenError(
            f"listen address '{text}': an IPv6 address goes into brackets, as in '[::1]:9907'"
        )
    if host and not _HOST_NAME.fullmatch(host):
        raise ListenError(f"listen address '{text}': '{host}' is not a host name or an address")
    return host


def listen_addresses() -> Callable[[Any], tuple[str, ...]]:
    """A parser of the configuration: one or several listen addresses, commas between them or not.

    It raises ValueError on what the server could not listen on.
    """

    def parse(value: Any) -> tuple[str, ...]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"must be an address such as ':9907', or a list, got {value!r}")
        addresses = tuple(
            part.strip() for text in texts for part in text.split(",") if part.strip()
        )
        if not addresses:
            raise ValueError("must name at least one address")
        for address in addresses:
            try:
                parse_listen_address(address)
            except ListenError as error:
                raise ValueError(str(error).removeprefix("listen address ")) from None
        return addresses

    return parse


def format_address(host: str, port: int) -> str:
    """Write host and port as a listen address, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def open_listener(text: str, backlog: int) -> socket.socket:
    """Open a non-blocking listening socket; without a host it serves IPv6 and IPv4.

    Raises ListenError: "cannot listen on 127.0.0.1:9907: address already in use". It is an
    AddressUnavailableError where the same address may be bound later.
    """
    host, port = parse_listen_address(text)
    try:
        if host in {"", "::"}:
            return _listen_everywhere(port, backlog)
        return _listen(*_resolve(host, port), backlog)
    except OSError as error:
        # A resolver's error numbers (EAI_*) are negative and mean nothing to strerror.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        # A port below 1024 stays forbidden; a port in use and a name not yet resolved do not stay so.
        kind = ListenError if error.errno == errno.EACCES else AddressUnavailableError
        raise kind(f"cannot listen on {text}: {reason.lower()}") from error


def open_listeners(
    addresses: Sequence[str], backlog: int, *, systemd_socket: bool = False
) -> tuple[socket.socket, ...]:
    """Open all addresses, or take the sockets that systemd passes. Raises ListenError; none is open then."""
    if systemd_socket:
        return tuple(inherited_listeners(os.environ))
    with contextlib.ExitStack() as opened:
        listeners = [opened.enter_context(open_listener(each, backlog)) for each in addresses]
        opened.pop_all()
    return tuple(listeners)


def inherited_listeners(environment: Mapping[str, str]) -> list[socket.socket]:
    """The listening sockets that systemd passes (sd_listen_fds(3)). Raises ListenError without any."""
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal() or count == "0":
        raise ListenError(
            "--web.systemd-socket: systemd passed no socket; start the service through its socket unit"
        )
    listeners: list[socket.socket] = []
    for descriptor in range(_LISTEN_FDS_START, _LISTEN_FDS_START + int(count[:3])):
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
        if listener.family not in {socket.AF_INET, socket.AF_INET6}:
            raise ListenError(
                "--web.systemd-socket: ListenStream must be a TCP address, such as 9907"
            )
        listener.setblocking(False)
        listeners.append(listener)
    return listeners


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """One address for a host; of several the IPv4 one, as `localhost` has both on most machines."""
    # As bytes where it can be: text goes through Python's IDNA codec, with 1 MB of tables.
    name = host.encode("ascii") if host.isascii() else host
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    return family, address  # type: ignore[return-value]  # IPv6 has two more fields, kept as they are


def _listen_everywhere(port: int, backlog: int) -> socket.socket:
    try:
        return _listen(socket.AF_INET6, ("::", port), backlog, dual_stack=True)
    except OSError as error:
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            raise
    # IPv6 is switched off.
    return _listen(socket.AF_INET, ("0.0.0.0", port), backlog)  # noqa: S104  # asked for


def _listen(
    family: socket.AddressFamily,
    address: tuple[str, int],
    backlog: int,
    *,
    dual_stack: bool = False,
) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A restarted daemon takes its port back at once, though old connections linger in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not dual_stack))
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def is_exhaustion(error: OSError) -> bool:
    """Whether the machine has run out of descriptors or memory for a new socket."""
    return error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
