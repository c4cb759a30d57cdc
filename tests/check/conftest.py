"""`flopwatch check` as a user runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_nvml import (
    FakeNvml,
)


Check = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Run the command with a configuration; exit code and report."""

    def run(
        fake: FakeNvml | None = None, config: str = "", **environment: str
    ) -> tuple[int, dict[str, Any]]:
        file = tmp_path / "check.yaml"
        file.write_text(
            "web: {listen_address: ['127.0.0.1:0']}\nprobes: {enabled: false}\n" + config
        )
        finished = subprocess.run(
            [sys.executable, "-m", "exporter", "check", "--json", "--config.file", str(file)],
            env={
                **os.environ,
                "XDG_STATE_HOME": str(tmp_path),
                **(fake.env if fake else {}),
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.stderr == ""
        return finished.returncode, json.loads(finished.stdout)

    return run


def found(report: dict[str, Any], area: str) -> list[tuple[str, str]]:
    """Level and text of the findings in one area."""
    return [
        (finding["level"], finding["text"])
        for finding in report["findings"]
        if finding["area"] == area
    ]
