"""docs/web-configuration.md is correct and complete."""

import re
import shutil
from pathlib import Path

import pytest

from exporter.web.config import TlsServerConfig, WebConfig, load_web_config
from exporter.web.connections import DEFAULT_LIMITS
from tests.web.certificates import write_corpus_certificates


DOCUMENT = (Path(__file__).parents[2] / "docs/web-configuration.md").read_text("utf-8")
EXAMPLES = [
    block
    for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    if "scrape_configs" not in block
]


def test_there_are_examples() -> None:
    """TLS, a password, and client certificates."""
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_load(tmp_path: Path, example: str) -> None:
    """Each example is a good file and configures something, without a warning."""
    write_corpus_certificates(tmp_path)
    shutil.copy(tmp_path / "ca.pem", tmp_path / "clients.pem")
    path = tmp_path / "web.yml"
    path.write_text(example)

    config = load_web_config(path)

    assert config != WebConfig(path)
    assert config.warnings == ()


def test_every_key_is_described() -> None:
    """No key of the longest section is left out."""
    for key in TlsServerConfig.__struct_fields__:
        assert f"`{key}`" in DOCUMENT


@pytest.mark.parametrize(
    "row",
    [
        f"| connections, all addresses together | {DEFAULT_LIMITS.connections} |",
        f"from its first byte | {DEFAULT_LIMITS.head_seconds:.0f} s |",
        f"| time to read a response | {DEFAULT_LIMITS.response_seconds:.0f} s |",
        f"| idle between requests | {DEFAULT_LIMITS.idle_seconds:.0f} s |",
        f"| request target | {DEFAULT_LIMITS.target_bytes // 1024} KiB |",
        f"| headers | {DEFAULT_LIMITS.header_count}, {DEFAULT_LIMITS.head_bytes // 1024} KiB |",
        f"| body (read and dropped) | {DEFAULT_LIMITS.body_bytes // 1024} KiB |",
    ],
)
def test_the_limits_are_those_of_the_server(row: str) -> None:
    """A changed limit changes the page."""
    assert row in DOCUMENT
