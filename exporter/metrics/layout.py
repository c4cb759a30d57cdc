"""The layout of an exposition: its text without the changing values, kept between scrapes.

Each part of the State is a block, which keeps the series of the part and its values. Of some 1,500
values of eight GPUs, a third changes with a tick and most of the others never do. So those that
have never changed are part of the fixed text, and a scrape writes only those that move. A value
that moves for the first time rebuilds the fixed text, as does a series that appears or vanishes.
"""

import math
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from enum import Enum
from itertools import count
from operator import itemgetter
from typing import Any, Protocol

import msgspec

from exporter.metrics.family import Family, Label, Labels, MetricType
from exporter.metrics.rows import Part, Reader


_ENCODER = msgspec.json.Encoder()
# JSON has no infinities and no NaN.
_NOT_FINITE = b"null"


class Format(Enum):
    """An exposition format that the daemon writes, by its Content-Type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def header(family: Family, format_: Format) -> str:
    """The HELP and TYPE lines of a family."""
    name = family.name
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    if format_ is Format.OPENMETRICS:
        text = text.replace('"', r"\"")
        if family.type is MetricType.COUNTER:
            name = name.removesuffix("_total")
    return f"# HELP {name} {text}\n# TYPE {name} {family.type}\n"


def series_text(family: Family, labels: tuple[Label, ...], suffix: str) -> str:
    """What precedes the value on the line of a series; the same in both formats."""
    if not labels:
        return f"{family.name}{suffix} "
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(labels))
    return f"{family.name}{suffix}{{{text}}} "


def number_texts(values: Iterable[float]) -> list[bytes]:
    """The shortest decimal numbers that are read as exactly these values, by one call of a C encoder."""
    numbers = list(map(float, values))
    if not numbers:
        return []
    encoded = _ENCODER.encode(numbers)
    texts = encoded[1:-1].split(b",")
    if _NOT_FINITE in encoded:
        return [
            _special(number) if text == _NOT_FINITE else text
            for number, text in zip(numbers, texts, strict=True)
        ]
    return texts


def _special(number: float) -> bytes:
    return b"NaN" if math.isnan(number) else b"+Inf" if number > 0 else b"-Inf"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


# Positions of moving values are remembered for each shape that a part has had, up to this many:
# then those of unused shapes are forgotten.
_SHAPES_MAX = 1024


class ExtraLabels(Protocol):
    """Labels that series have besides those of their family. Compared by value."""

    def added_to(self, family: Family, labels: Labels) -> Labels:
        """The labels to add to a series of this family that has these labels."""


Picker = Callable[[list[Any]], tuple[Any, ...]]


class Block:
    """The series of one part and their values, and which of them the layout writes every time."""

    __slots__ = (
        "families",
        "labels",
        "move",
        "moving",
        "place",
        "reader",
        "shape",
        "source",
        "stay",
        "stayed",
        "texts",
        "values",
    )

    def __init__(self, part: Part, extra: ExtraLabels) -> None:
        self.reader: Reader[Any]
        self.reader, self.labels, self.source = part
        self.shape: Hashable
        self.shape, self.values = self.reader.read(self.labels, self.source)
        # Positions of the values that have changed; one set for all parts of this reader and shape.
        self.moving: set[int] = set()
        # The layout's: pick the values that move and those that stay, and where the former are kept.
        self.move: Picker = tuple
        self.stay: Picker = tuple
        self.stayed: tuple[Any, ...] = ()
        self.place = slice(0, 0)
        # The family of each series, and the text before its value.
        self.families: list[Family] = []
        self.texts: list[str] = []
        self.set_extra_labels(extra)

    def find_moving(self) -> None:
        """Record which of the constant values have changed, and all others of their families.

        Where the temperature of one sensor moves, that of the other will, too: learning that one by
        one would rebuild the fixed text each time.
        """
        positions = self.stay(list(range(len(self.values))))
        families = {
            self.families[position]
            for position, before in zip(positions, self.stayed, strict=True)
            if self.values[position] != before
        }
        self.moving.update(
            position for position, family in enumerate(self.families) if family in families
        )

    def set_extra_labels(self, extra: ExtraLabels) -> None:
        """Build the text before the values."""
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
                # Different parts from here on: blocks are cheap, and this is rare.
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
            self._changed.clear()  # a new layout reads all values
        return same

    def update_first(self, source: Any, extra: ExtraLabels) -> None:
        """Read the first part again: its values depend on all others, its series do not."""
        self._renew(self.blocks[0], source, extra)

    def set_extra_labels(self, extra: ExtraLabels) -> None:
        """Rebuild the text of all series."""
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
    """The place of each value in the text. Valid for as long as the blocks have these series."""

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
        self._texts: dict[Format, list[bytes]] = {}
        self._numbers: list[float] = []
        self._in_order: Picker = tuple
        self._fold()

    def update(self, changed: Iterable[Block]) -> None:
        """Take the values of these blocks."""
        numbers = self._numbers
        is_folded = True
        for block in changed:
            values = block.values
            if block.stay(values) == block.stayed:
                numbers[block.place] = block.move(values)
            else:
                block.find_moving()
                is_folded = False
        if not is_folded:
            self._fold()

    def write(self, format_: Format) -> bytes:
        """The whole exposition."""
        text = self._texts.get(format_)
        if text is None:
            text = self._texts[format_] = self._fixed(format_)
        text[1::2] = self._in_order(number_texts(self._numbers))
        return b"".join(text)

    def _fold(self) -> None:
        """Give each changing value a place, and put all others into the fixed text."""
        self._texts.clear()
        self._numbers = []
        shown: dict[Block, list[int]] = {block: [] for block in self._blocks}
        for _, series in self._families:
            for block, position in series:
                shown[block].append(position)
        places: dict[tuple[Block, int], int] = {}
        for block, positions in shown.items():
            moving = [position for position in positions if position in block.moving]
            first = len(self._numbers)
            places.update(zip(((block, position) for position in moving), count(first)))
            block.place = slice(first, first + len(moving))
            block.move = _picker(moving)
            block.stay = _picker([each for each in positions if each not in block.moving])
            block.stayed = block.stay(block.values)
            self._numbers += block.move(block.values)
        self._in_order = _picker(
            [places[each] for _, series in self._families for each in series if each in places]
        )

    def _fixed(self, format_: Format) -> list[bytes]:
        """Text and a slot for a changing value in turn, and the text after the last one."""
        fixed: list[bytes] = []
        pieces: list[str] = []
        for family, series in self._families:
            pieces.append(header(family, format_))
            texts = number_texts([block.values[position] for block, position in series])
            for (block, position), text in zip(series, texts, strict=True):
                pieces.append(block.texts[position])
                if position in block.moving:
                    fixed += (_bytes(pieces), b"")
                    pieces = ["\n"]
                else:
                    pieces += (text.decode(), "\n")
        fixed.append(_bytes(pieces))
        return fixed


def _bytes(pieces: Iterable[str]) -> bytes:
    # A label value from outside may have half of a surrogate pair, which UTF-8 cannot encode.
    return "".join(pieces).encode(errors="replace")


def _picker(positions: Sequence[int]) -> Picker:
    """Picks the values at these positions."""
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda values: tuple([values[position] for position in positions])
