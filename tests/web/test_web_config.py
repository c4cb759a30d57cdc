"""The corpus: each file is named after what it shows; the first line of a bad one says why."""

import os
import shutil
import ssl
from pathlib import Path

import pytest

from exporter.errors import WebConfigError
from exporter.web.config import RateLimit, load_web_config
from tests.web.certificates import write_corpus_certificates


TLS = "tls_server_config: {cert_file: server.pem, key_file: server.key, %s}"
CURVES = "tls_server_config.curve_preferences"
CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus and its certificates."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus_certificates(folder)
    for path in CORPUS.iterdir():
        shutil.copy(path, folder)
    return folder


def name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.good.yml")), ids=name)
def test_good_files_are_accepted(folder: Path, path: Path) -> None:
    """A good file loads without a warning."""
    assert load_web_config(folder / path.name).warnings == ()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.bad.yml")), ids=name)
def test_bad_files_are_refused(folder: Path, path: Path) -> None:
    """A bad file is refused in one line that names file, key and fault."""
    file = folder / path.name
    first_line = path.read_bytes().split(b"\n")[0].decode()
    message = first_line.removeprefix("# refused: ").format(folder=folder, file=file)
    expected = message if message.startswith(str(file)) else f"{file}: {message}"

    with pytest.raises(WebConfigError) as raised:
        load_web_config(file)

    # An ellipsis stands for OpenSSL's own words, which change with its version.
    text = str(raised.value)
    assert text == expected or (expected.endswith("…") and text.startswith(expected[:-1]))
    assert "\n" not in text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message names the missing file."""
    with pytest.raises(WebConfigError) as raised:
        load_web_config(tmp_path / "web.yml")

    assert str(raised.value) == f"{tmp_path}/web.yml: cannot be read: no such file or directory"


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """The same file reader as that of the configuration: nothing that never ends or could block."""
    os.mkfifo(tmp_path / "web.yml")

    with pytest.raises(WebConfigError, match=r"web\.yml: is not a regular file$"):
        load_web_config(tmp_path / "web.yml")


def test_passwords_are_never_shown(folder: Path) -> None:
    """Neither a rejected password nor the hash of an accepted one appears in any output."""
    with pytest.raises(WebConfigError) as raised:
        load_web_config(folder / "password_clear.bad.yml")

    assert "hunter2" not in str(raised.value)
    assert "$2b$" not in repr(load_web_config(folder / "users.good.yml"))


def test_everything_configured_is_taken_over(folder: Path) -> None:
    """The values of a full file arrive in the settings."""
    config = load_web_config(folder / "tls_everything.good.yml")

    tls = config.tls
    assert tls is not None
    assert tls.client_verification is ssl.CERT_REQUIRED
    assert tls.allowed_sans == {
        "prometheus.example.com",
        "10.0.0.1",
        "fd00::1",
        "spiffe://fleet/prometheus",
    }
    assert (tls.min_version, tls.max_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    assert tls.ciphers == "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-GCM-SHA256"
    assert tls.prefer_server_ciphers is False
    assert tls.curve == "X25519"
    assert config.headers == (
        ("Content-Security-Policy", "default-src 'self'"),
        ("Strict-Transport-Security", "max-age=31536000"),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "deny"),
        ("X-XSS-Protection", "1; mode=block"),
    )


def test_ciphers_of_tls_1_3_alone_mean_tls_1_3_alone(folder: Path) -> None:
    """A list without a cipher for TLS 1.2 leaves no TLS 1.2."""
    config = load_web_config(folder / "tls_1_3_ciphers_only.good.yml")

    assert config.tls is not None
    assert config.tls.min_version is ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    ("interval", "expected"),
    [("1s", 1.0), ("250ms", 0.25), ("1m30s", 90.0), ("1.5h", 5400.0), (".5s", 0.5), ("2us", 2e-6)],
)
def test_the_rate_limits_interval_is_a_duration(
    tmp_path: Path, interval: str, expected: float
) -> None:
    """Durations are written as in Go."""
    path = tmp_path / "web.yml"
    path.write_text(f"rate_limit: {{interval: {interval}, burst: 3}}")

    assert load_web_config(path).rate_limit == RateLimit(pytest.approx(expected), 3)


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        (
            "http_server_config: {http2: true}",
            ("http_server_config.http2: only HTTP/1.1 is supported",),
        ),
        (
            TLS % "min_version: TLS10",
            ("tls_server_config.min_version: TLS10 is obsolete; TLS12 is used",),
        ),
        (
            TLS % "curve_preferences: [X25519, CurveP256]",
            (f"{CURVES}: an order cannot be set, all curves are offered",),
        ),
    ],
)
def test_differences_are_logged(folder: Path, text: str, warnings: tuple[str, ...]) -> None:
    """Settings that are valid elsewhere but handled differently (safely) here cause a warning."""
    path = folder / "warned.yml"
    path.write_text(text)

    assert load_web_config(path).warnings == warnings


def test_certificates_can_be_inline(folder: Path) -> None:
    """Certificate, key and authority may be in the file itself."""

    def indented(file: str) -> str:
        return "".join(f"    {line}\n" for line in (folder / file).read_text().splitlines())

    path = folder / "inline.yml"
    path.write_text(
        f"tls_server_config:\n  cert: |\n{indented('server.pem')}  key: |\n{indented('server.key')}"
        f"  client_ca: |\n{indented('ca.pem')}  client_auth_type: RequireAndVerifyClientCert\n"
    )

    config = load_web_config(path)

    assert config.tls is not None
    assert "PRIVATE" not in repr(config)
