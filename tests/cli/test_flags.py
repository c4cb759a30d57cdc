"""What people type: each spelling is accepted, or rejected in one line with the right spelling."""

import os
import subprocess
import sys

import pytest


def flopwatch(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flopwatch", *words],
        env={**os.environ, "FLOPWATCH_PROBES_ENABLED": "false", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--log.level=warn"],
        ["--log.level=WARNING"],
        ["--log.level", "Debug"],
        ["--log.format=JSON"],
        ["--web.systemd-socket"],
        ["--web.listen-address=127.0.0.1:9907,[::1]:9907"],
        ["--web.listen-address=127.0.0.1:9907", "--web.listen-address=[::1]:9907"],
        ["--web.listen-address=:9907"],
    ],
    ids=" ".join,
)
def test_accepted_spellings(words: list[str]) -> None:
    """The spellings of other exporters, and of people in a hurry."""
    result = flopwatch("config", "--check", *words)

    assert (result.returncode, result.stderr) == (0, "")


def test_addresses_in_a_variable_are_separated_by_commas() -> None:
    """As after the flag."""
    result = flopwatch("config", FLOPWATCH_WEB_LISTEN_ADDRESS="127.0.0.1:9907,[::1]:9907")

    assert "listen_address:\n  - 127.0.0.1:9907\n  - '[::1]:9907'\n" in result.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["serve", "--sampling.interval=5s"],
            (
                "--sampling.interval is not a flag; set sampling.interval in the configuration file, "
                "or FLOPWATCH_SAMPLING_INTERVAL"
            ),
        ),
        (
            ["serve", "--web.listen-adress=:1"],
            "unknown flag --web.listen-adress; did you mean --web.listen-address?",
        ),
        (
            ["metrics", "--nothing-like-it"],
            "unknown flag --nothing-like-it; see flopwatch metrics --help",
        ),
        (["config", "file.yml"], "unexpected argument 'file.yml'"),
        (
            ["config", "--log.level=loud"],
            "--log.level: must be one of debug, info, warning, error, got 'loud'",
        ),
        (
            ["config", "--web.listen-address=unix:/run/flopwatch.sock"],
            (
                "--web.listen-address: 'unix:/run/flopwatch.sock': Unix sockets are not supported; use a TCP "
                "address, or a socket unit with --web.systemd-socket"
            ),
        ),
        (
            ["simulate", "--web.listen-address=unix:/run/flopwatch.sock"],
            (
                "listen address 'unix:/run/flopwatch.sock': Unix sockets are not supported; use a TCP "
                "address, or a socket unit with --web.systemd-socket"
            ),
        ),
        (
            ["config", "--web.telemetry-path=/-/healthy"],
            (
                "configuration: web.telemetry_path: /-/healthy is taken by the server; choose another, such as "
                "/metrics"
            ),
        ),
        (["config", "--config.file=/dev/zero"], "/dev/zero: is not a regular file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_rejected_spellings(words: list[str], line: str) -> None:
    """With the exit code of a configuration that can never work."""
    result = flopwatch(*words)

    assert (result.returncode, result.stderr) == (2, f"flopwatch: {line}\n")


def test_a_variable_that_sets_nothing_is_named() -> None:
    """With the nearest name that does; it does not prevent a start."""
    result = flopwatch("config", "--check", FLOPWATCH_SAMPLING_INTERVALL="1s")

    assert (result.returncode, result.stderr) == (
        0,
        (
            "flopwatch: warning: FLOPWATCH_SAMPLING_INTERVALL is set, but there is no such option; did you mean "
            "FLOPWATCH_SAMPLING_INTERVAL?\n"
        ),
    )


def test_check_names_it_too() -> None:
    """As a warning, with what to do."""
    result = flopwatch(
        "check", "--web.listen-address=127.0.0.1:0", FLOPWATCH_SAMPLING_INTERVALL="1s"
    )
    words = " ".join(result.stdout.split())

    assert result.returncode == 0
    assert (
        "configuration environment: FLOPWATCH_SAMPLING_INTERVALL is set, but there is no such option; did you "
        "mean FLOPWATCH_SAMPLING_INTERVAL? -> rename or remove it"
    ) in words
