"""The tables of this folder: figures that others published about real GPUs, with their sources."""

import csv
from collections.abc import Iterable
from pathlib import Path


FOLDER = Path(__file__).parent


def table(name: str, folder: Path = FOLDER) -> list[dict[str, str]]:
    """The rows of a table; lines that begin with # name its source."""
    lines = (folder / f"{name}.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def sources(name: str, folder: Path = FOLDER) -> Iterable[str]:
    """The lines that name a table's source."""
    lines = (folder / f"{name}.csv").read_text().splitlines()
    return [line for line in lines if line.startswith("#")]
