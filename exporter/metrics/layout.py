"""The layout of an exposition: its text without the values that move, kept from one scrape to the next.

Each part of the State is a block, which keeps the series of the part and its values. Of some 1,500
values of eight GPUs, a third changes with a tick and most of the others never do. So those that have
never changed are part of the fixed text, and a scrape writes only those that move. A value that moves
for the first time makes the fixed text anew, as does a series that appears or vanishes.
"""

from collections.abc import Container, Hashable, Iterable, Sequence
from itertools import compress, count
from operator import ne
from typing import Any, Protocol

from exporter.metrics.family import Family
from exporter.metrics.rows import Part, Reader
from exporter.metrics.samples import Labels
from exporter.metrics.text import Format, header, number_texts, series_text


# Positions of moving values are remembered for each shape that a part has had, up to this many:
# then those of shapes that no part has now are forgotten.
_SHAPES_MAX = 1024


class ExtraLabels(Protocol):
    """Labels that series carry beside those of their family. Compared by value."""

    def added_to(self, family: Family, labels: Labels) -> Labels:
        """The labels to add to a series of this family that has these labels."""


class Block:
    """The series of one part and their values: as they are, and as a layout has last written them."""

    __slots__ = (
        "families",
        "labels",
        "moving",
        "places",
        "reader",
        "shape",
        "source",
        "texts",
        "values",
        "written",
    )

    def __init__(self, part: Part, extra: ExtraLabels) -> None:
        self.reader: Reader[Any]
        self.reader, self.labels, self.source = part
        self.shape: Hashable
        self.shape, self.values = self.reader.read(self.labels, self.source)
        self.written = self.values
        # Positions of the values that have changed; one set for all parts of this reader and shape.
        self.moving: set[int] = set()
        # Where the layout keeps the text of each value.
        self.places: list[int] = []
        # Of each series, its family, and the text before its value.
        self.families: list[Family] = []
        self.texts: list[str] = []
        self.set_extra_labels(extra)

    def set_extra_labels(self, extra: ExtraLabels) -> None:
        """Make the text before the values."""
        series = self.reader.series(self.labels, self.shape)
        self.families = [family for family, _, _ in series]
        self.texts = [
            series_text(family, (*labels, *extra.added_to(family, labels)), suffix)
            for family, labels, suffix in series
        ]


class Blocks:
    """The blocks of all parts, in their order. Not thread-safe."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._changed: list[Block] = []
        self._moving: dict[tuple[Reader[Any], Hashable], set[int]] = {}

    def update(self, parts: Iterable[Part], extra: ExtraLabels) -> bool:
        """Take all parts as they are now; returns whether the series are the same as before."""
        blocks = self.blocks
        same = True
        number = 0
        for part in parts:
            if number < len(blocks):
                block = blocks[number]
                if block.reader is part[0] and block.labels == part[1]:
                    same &= self._renew(block, part[2], extra)
                    number += 1
                    continue
                # From here on other parts: blocks are cheap, and this is rare.
                del blocks[number:]
            block = Block(part, extra)
            self._set_moving(block)
            blocks.append(block)
            same = False
            number += 1
        if number < len(blocks):
            del blocks[number:]
            same = False
        if not same:
            self._changed.clear()  # a new layout takes all values as they are
        return same

    def update_first(self, source: Any, extra: ExtraLabels) -> None:
        """Take the first part again, whose values depend on all others and whose series do not."""
        self._renew(self.blocks[0], source, extra)

    def set_extra_labels(self, extra: ExtraLabels) -> None:
        """Make the text of all series again."""
        for block in self.blocks:
            block.set_extra_labels(extra)

    def take_changed(self) -> list[Block]:
        """The blocks whose values have changed since the last call."""
        changed, self._changed = self._changed, []
        return changed

    def _renew(self, block: Block, source: Any, extra: ExtraLabels) -> bool:
        """Take a part as it is now; returns whether it has the same series as before."""
        before, block.source = block.source, source
        reader = block.reader
        if before is source or reader.same(before, source):
            return True
        shape, values = reader.read(block.labels, source)
        if shape == block.shape:
            if values != block.values:
                block.values = values
                self._changed.append(block)
            return True
        block.shape, block.values = shape, values
        block.set_extra_labels(extra)
        self._set_moving(block)
        return False

    def _set_moving(self, block: Block) -> None:
        key = (block.reader, block.shape)
        moving = self._moving.get(key)
        if moving is None:
            if len(self._moving) >= _SHAPES_MAX:
                self._moving = {(each.reader, each.shape): each.moving for each in self.blocks}
            moving = self._moving[key] = set()
        block.moving = moving


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
        kept: dict[Family, list[tuple[Block, int]]] = {}
        for block in blocks:
            for position, family in enumerate(block.families):
                if self.count < limit or family in always:
                    kept.setdefault(family, []).append((block, position))
                    self.count += 1
                else:
                    self.dropped += 1
        self._blocks = blocks
        self._families = [(family, kept[family]) for family in families if family in kept]
        self._texts: dict[Format, list[str]] = {}
        self._values: list[str] = []
        self._fold()

    def update(self, changed: Iterable[Block]) -> None:
        """Write the values of these blocks that are not as they were."""
        numbers: list[float] = []
        places: list[int] = []
        newly_moving = False
        for block in changed:
            values = block.values
            positions = list(compress(count(), map(ne, block.written, values)))
            block.written = values
            if not block.moving.issuperset(positions):
                block.moving.update(positions)
                newly_moving = True
            if not newly_moving:
                numbers += [values[position] for position in positions]
                at = block.places
                places += [at[position] for position in positions]
        if newly_moving:
            self._fold()
            return
        texts = self._values
        for place, text in zip(places, number_texts(numbers), strict=True):
            texts[place] = text

    def write(self, format_: Format) -> str:
        """The whole exposition."""
        text = self._texts.get(format_)
        if text is None:
            text = self._texts[format_] = self._fixed(format_)
        text[1::2] = self._values[1:]
        return "".join(text)

    def _fold(self) -> None:
        """Give each moving value a place, and all others to the fixed text."""
        self._texts.clear()
        for block in self._blocks:
            block.written = block.values
            block.places = [0] * len(block.values)  # where what nobody sees is written
        numbers = [0.0]
        for _, series in self._families:
            for block, position in series:
                if position in block.moving:
                    block.places[position] = len(numbers)
                    numbers.append(block.values[position])
        self._values = number_texts(numbers)

    def _fixed(self, format_: Format) -> list[str]:
        """Text and room for a moving value in turn, and the text after the last one."""
        fixed: list[str] = []
        pieces: list[str] = []
        for family, series in self._families:
            pieces.append(header(family, format_))
            texts = number_texts([block.written[position] for block, position in series])
            for (block, position), text in zip(series, texts, strict=True):
                pieces.append(block.texts[position])
                if block.places[position]:
                    fixed += ("".join(pieces), "")
                    pieces = ["\n"]
                else:
                    pieces += (text, "\n")
        fixed.append("".join(pieces))
        return fixed
