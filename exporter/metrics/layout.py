"""The layout of an exposition: its text without the values, kept from one scrape to the next.

Each part of the State is a block, which keeps the text before each value and the values as text. A
scrape reads the parts that are new, writes the values that have changed, and joins text and values in
turn. Only when a series appears or vanishes is the layout made again.
"""

from collections.abc import Container, Hashable, Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Protocol

from exporter.metrics.family import Family
from exporter.metrics.rows import Part, Reader
from exporter.metrics.samples import Labels
from exporter.metrics.text import Format, header, number_texts, renewed_texts, series_text


class ExtraLabels(Protocol):
    """Labels that series carry beside those of their family. Compared by value."""

    def added_to(self, family: Family, labels: Labels) -> Labels:
        """The labels to add to a series of this family that has these labels."""


class Block:
    """The series of one part, and their values as they were last written."""

    __slots__ = ("_shape", "_source", "_values", "labels", "lines", "reader", "texts")

    def __init__(self, part: Part, extra: ExtraLabels) -> None:
        self.reader: Reader[Any]
        self.reader, self.labels, self._source = part
        self._shape: Hashable
        self._shape, self._values = self.reader.read(self.labels, self._source)
        self.texts = number_texts(self._values)
        # Family, and the text before the value, of each series.
        self.lines: list[tuple[Family, str]] = []
        self.set_extra_labels(extra)

    def set_extra_labels(self, extra: ExtraLabels) -> None:
        """Make the text before the values."""
        self.lines = [
            (family, series_text(family, (*labels, *extra.added_to(family, labels)), suffix))
            for family, labels, suffix in self.reader.series(self.labels, self._shape)
        ]

    def update(self, source: Any, extra: ExtraLabels) -> bool:
        """Take the part as it is now; returns whether it has the same series as before."""
        before, self._source = self._source, source
        if before is source or self.reader.same(before, source):
            return True
        shape, values = self.reader.read(self.labels, source)
        if shape == self._shape:
            if values != self._values:
                self.texts = renewed_texts(values, self._values, self.texts)
                self._values = values
            return True
        self._shape, self._values = shape, values
        self.texts = number_texts(values)
        self.set_extra_labels(extra)
        return False


class Blocks:
    """The blocks of all parts, in their order. Not thread-safe."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def update(self, parts: Iterable[Part], extra: ExtraLabels) -> bool:
        """Take all parts as they are now; returns whether the series are the same as before."""
        blocks = self.blocks
        same = True
        count = 0
        for part in parts:
            if count < len(blocks):
                block = blocks[count]
                if block.reader is part[0] and block.labels == part[1]:
                    same &= block.update(part[2], extra)
                    count += 1
                    continue
                # From here on other parts: blocks are cheap, and this is rare.
                del blocks[count:]
            blocks.append(Block(part, extra))
            same = False
            count += 1
        if count < len(blocks):
            del blocks[count:]
            same = False
        return same

    def set_extra_labels(self, extra: ExtraLabels) -> None:
        """Make the text of all series again."""
        for block in self.blocks:
            block.set_extra_labels(extra)


class Layout:
    """Where each value stands in the text. Holds for as long as the blocks have these series."""

    def __init__(
        self,
        blocks: Sequence[Block],
        families: Iterable[Family],
        *,
        limit: int,
        always: Container[Family],
    ) -> None:
        """The first `limit` series are kept, and those of the families in `always` beyond them."""
        self.count = 0
        self.dropped = 0
        places: dict[Family, list[tuple[str, int]]] = {}
        place = 0
        for block in blocks:
            for family, text in block.lines:
                if self.count < limit or family in always:
                    places.setdefault(family, []).append((text, place))
                    self.count += 1
                else:
                    self.dropped += 1
                place += 1
        self._families = [(family, places[family]) for family in families if family in places]
        order = [place for _, lines in self._families for _, place in lines]
        # A single place would give a value and not a tuple.
        self._in_order = itemgetter(*order) if len(order) > 1 else None
        self._order = order
        self._texts: dict[Format, list[str]] = {}

    def write(self, blocks: Iterable[Block], format_: Format) -> str:
        """The whole exposition."""
        values = list(chain.from_iterable([block.texts for block in blocks]))
        text = self._texts.get(format_)
        if text is None:
            text = self._texts[format_] = self._fixed(format_)
        if self._in_order is not None:
            text[1::2] = self._in_order(values)
        else:
            text[1::2] = [values[place] for place in self._order]
        return "".join(text)

    def _fixed(self, format_: Format) -> list[str]:
        """Text and room for a value in turn, and the end of the last line."""
        fixed: list[str] = []
        end = ""  # of the line before
        for family, lines in self._families:
            head = header(family, format_)
            for text, _ in lines:
                fixed += (f"{end}{head}{text}", "")
                head, end = "", "\n"
        fixed.append(end)
        return fixed
