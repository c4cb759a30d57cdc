"""What somebody who mistyped a name probably meant."""

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name most like `name`; None where none is like it by `cutoff` (0 to 1)."""
    import difflib  # noqa: PLC0415  half a megabyte, for mistakes only

    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None
