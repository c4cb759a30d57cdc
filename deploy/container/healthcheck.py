"""The container's health check: exit 0 when `/-/healthy` answers 200.

It probes the port of the first listen address in the environment (default 9907) by HTTP, and by
HTTPS where the server uses TLS. The certificate is not verified: the question is whether the
process serves, not who it is. A server that requires a client certificate counts as serving.
"""
# ruff: noqa: INP001  a script, not a package

import http.client
import os
import ssl
import sys


DEFAULT_PORT = 9907
TIMEOUT_SECONDS = 3.0


def main() -> int:
    """Probe once; the exit code is the answer."""
    first = os.environ.get("FLOPWATCH_WEB_LISTEN_ADDRESS", "").split(",")[0].strip(" []\"'")
    port = first.rpartition(":")[2]
    number = int(port) if port.isdecimal() else DEFAULT_PORT
    host = first.rpartition(":")[0].strip("[]")
    if host in {"", "0.0.0.0", "::"}:  # noqa: S104  compared, not bound
        host = "localhost"
    return 0 if _healthy(host, number, tls=False) or _healthy(host, number, tls=True) else 1


def _healthy(host: str, port: int, *, tls: bool) -> bool:
    if tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=TIMEOUT_SECONDS, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    shaken = False
    try:
        connection.connect()
        shaken = tls
        connection.request("GET", "/-/healthy")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError) as error:
        # With TLS 1.3 a server refuses a client without a certificate after the handshake, and its
        # alert races with the end of the connection: a completed handshake shows that it serves.
        return shaken or (tls and "ALERT" in (getattr(error, "reason", None) or ""))
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
