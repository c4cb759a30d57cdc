"""The table of engines in docs/models.md, from the registry. `python -m exporter.inference.engines.table`."""

from pathlib import Path

from exporter.inference.engines.registry import ENGINES


DOCUMENT = Path("docs/models.md")
_BEGIN, _END = (
    "<!-- engines: python -m exporter.inference.engines.table -->\n",
    "<!-- end of engines -->\n",
)


def table() -> str:
    """The engines in Markdown, by name."""
    lines = [
        "| `engine` | what it is | to turn on | default address | what it tells |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{engine.name}` | {engine.title} | {engine.enable} "
        f"| `:{engine.ports[0]}{engine.path}` | {engine.tells} |"
        for engine in sorted(ENGINES.values(), key=lambda engine: engine.name)
    ]
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """The page with the table between its markers."""
    before, _, rest = page.partition(_BEGIN)
    return before + _BEGIN + "\n" + table() + "\n" + _END + rest.partition(_END)[2]


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
