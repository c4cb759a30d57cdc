import socket

import pytest

from exporter.config.model import parse_listen_address
from exporter.errors import ListenError
from exporter.web.connections import format_address, open_listener


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":9907", ("", 9907)),
        ("127.0.0.1:9907", ("127.0.0.1", 9907)),
        ("[::1]:9907", ("::1", 9907)),
        ("[::]:9907", ("::", 9907)),
        ("localhost:0", ("localhost", 0)),
        ("gpu-node_7.example.com:65535", ("gpu-node_7.example.com", 65535)),
    ],
)
def test_addresses_are_split_into_host_and_port(text: str, expected: tuple[str, int]) -> None:
    """A listen address is host and port; without a host, all addresses."""
    assert parse_listen_address(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "listen address '': the port is missing"),
        ("9907", "listen address '9907': the port is missing; for all addresses write ':9907'"),
        ("localhost", "listen address 'localhost': the port is missing"),
        ("[::1]", "listen address '[::1]': the port is missing"),
        (":", "listen address ':': the port must be a number, got ''"),
        (":http", "listen address ':http': the port must be a number, got 'http'"),
        (":-1", "listen address ':-1': the port must be a number, got '-1'"),
        (":٣", "listen address ':٣': the port must be a number, got '٣'"),
        (":65536", "listen address ':65536': the port must be at most 65535"),
        (":" + "9" * 5000, f"listen address ':{'9' * 5000}': the port must be at most 65535"),
        ("[zz]:1", "listen address '[zz]:1': 'zz' is not an IPv6 address"),
        (
            "::1:9907",
            "listen address '::1:9907': an IPv6 address must be in brackets, as in '[::1]:9907'",
        ),
        (
            "http://x:1",
            "listen address 'http://x:1': an IPv6 address must be in brackets, as in '[::1]:9907'",
        ),
        ("a b:1", "listen address 'a b:1': 'a b' is not a host name or an address"),
    ],
)
def test_malformed_addresses_are_named(text: str, message: str) -> None:
    """The message quotes the address and says what is wrong with it."""
    with pytest.raises(ListenError) as raised:
        parse_listen_address(text)

    assert str(raised.value) == message


def test_addresses_are_written_as_they_are_read() -> None:
    """Formatting is the inverse of parsing."""
    assert [
        format_address(*parse_listen_address(text)) for text in ("[::1]:9907", "127.0.0.1:80", ":1")
    ] == ["[::1]:9907", "127.0.0.1:80", ":1"]


def test_an_address_in_use_is_named() -> None:
    """A second listener on a port fails with one line that names it."""
    with open_listener("127.0.0.1:0", 1) as first:
        taken = f"127.0.0.1:{first.getsockname()[1]}"
        with pytest.raises(ListenError) as raised:
            open_listener(taken, 1)

    assert str(raised.value) == f"cannot listen on {taken}: address already in use"


def test_a_foreign_address_is_named() -> None:
    """An address that no interface has (TEST-NET-1, RFC 5737) is refused."""
    with pytest.raises(ListenError) as raised:
        open_listener("192.0.2.1:0", 1)

    assert str(raised.value) == "cannot listen on 192.0.2.1:0: cannot assign requested address"


def test_an_unknown_host_is_named() -> None:
    """A name that cannot be resolved (.invalid, RFC 2606) is refused in one line."""
    with pytest.raises(ListenError, match=r"^cannot listen on nowhere\.invalid:0: [^\n]+$"):
        open_listener("nowhere.invalid:0", 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_without_a_host_both_protocols_are_served(host: str) -> None:
    """`:0` accepts IPv4 and IPv6."""
    with open_listener(":0", 1) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection((host, port), timeout=60) as client:
            assert client.getpeername()[1] == port
