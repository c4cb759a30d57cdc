"""The listening sockets."""

import contextlib
import errno
import os
import socket
from collections.abc import Mapping, Sequence

from exporter.config.model import parse_listen_address
from exporter.errors import AddressUnavailableError, ListenError


_LISTEN_FDS_START = 3  # SD_LISTEN_FDS_START of sd-daemon.h


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
