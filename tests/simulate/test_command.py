"""`flopwatch simulate` on the command line."""

import argparse
import json
import signal
import subprocess
import sys
import urllib.request

import pytest

from exporter.cli import simulate


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    simulate.add_simulate(parser.add_subparsers())
    return parser.parse_args(["simulate", *arguments])


@pytest.mark.parametrize(
    "arguments",
    [("--hosts", "0"), ("--gpus", "x"), ("--pace", "0"), ("--tick", "soon"), ("--pace", "inf")],
)
def test_nonsense_is_refused(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that cannot describe a fleet is a usage error that names the value."""
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)

    assert ended.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_help_describes_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    """--help lists each scenario with what happens in it."""
    from exporter.simulate.scenarios import SCENARIOS

    with pytest.raises(SystemExit):
        parse("--help")

    shown = capsys.readouterr().out
    for scenario in SCENARIOS.values():
        assert scenario.name in shown
        assert scenario.summary in shown


def test_history_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """--history writes and ends, without a server."""
    parsed = parse("--history", "30s", "--step", "15s", "--hosts", "1", "--gpus", "1")

    assert parsed.run(parsed) == 0
    assert capsys.readouterr().out.endswith("# EOF\n")


def test_serves_until_told_to_end() -> None:
    """The process says where it listens, serves the fleet, and ends at SIGTERM with 0."""
    command = (
        "import argparse, sys; from exporter.cli import simulate; p = argparse.ArgumentParser();"
        "simulate.add_simulate(p.add_subparsers()); a = p.parse_args(sys.argv[1:]); sys.exit(a.run(a))"
    )
    arguments = ["simulate", "--listen-address", "127.0.0.1:0", "--hosts", "1", "--gpus", "1"]
    with subprocess.Popen(
        [sys.executable, "-c", command, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        url = said.split()[-1]
        with urllib.request.urlopen(url, timeout=60) as answer:
            groups = json.load(answer)
        process.send_signal(signal.SIGTERM)
        code = process.wait(10)

    assert said.startswith("simulating 1 hosts at http://127.0.0.1:")
    assert groups[0]["labels"]["instance"] == "steady-decode-000"
    assert code == 0


@pytest.mark.parametrize(
    ("pull", "words"),
    [
        ("larger_batch", "for example larger_batch=30m"),
        ("release_idle=1m", "'release_idle' is not a lever that can be pulled here"),
        ("full_clocks=soon", "'soon'"),
    ],
)
def test_an_impossible_pull_is_refused(
    pull: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a time, of a lever that an engine does not have, or with an invalid time."""
    with pytest.raises(SystemExit):
        parse("--pull", pull)

    assert words in capsys.readouterr().err
