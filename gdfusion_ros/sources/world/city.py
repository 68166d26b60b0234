"""The part of the world that never moves: ground, buildings, trees, poles, fences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gdfusion_ros.labels import OCC3D
from gdfusion_ros.sources.world.layout import (
    CROSSING_GAP,
    CROSSING_WIDTH,
    PARKING_WIDTH,
    PERIOD,
    Layout,
    Street,
)

GROUND_CELL = 0.2
GROUND_CELLS = 1024
COLUMN_CELL = 0.4
COLUMN_CELLS = 512
LAYERS = 64
"""Bits of a column: cell k fills 0.4 k .. 0.4 (k + 1) metres above the ground."""

ASPHALT, WHITE, YELLOW, CONCRETE, KERB, PAVING, GRASS, SOIL, TARMAC = range(9)
GROUND_CLASS = np.array(
    [OCC3D.id("driveable_surface")] * 3
    + [OCC3D.id("sidewalk")] * 3
    + [OCC3D.id("terrain")] * 2
    + [OCC3D.id("driveable_surface")],
    dtype=np.uint8,
)
"""Label by ground material."""

PLAIN, FACADE, TREE, HEDGE = range(4)
"""How a column's surface is drawn."""


@dataclass
class Styles:
    """What columns look like; a column holds an index into these."""

    label: list[int]
    texture: list[int]
    color: list[tuple[float, float, float]]
    detail: list[tuple[float, float, float]]
    """FACADE: window pitch and storey height in metres, share of lit windows. TREE: height of the crown's foot."""

    def add(
        self,
        label: int,
        texture: int,
        color: npt.ArrayLike,
        detail: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> int:
        """The index of a new style."""
        r, g, b = np.asarray(color, dtype=float)
        self.label.append(label)
        self.texture.append(texture)
        self.color.append((float(r), float(g), float(b)))
        self.detail.append(detail)
        return len(self.label) - 1


@dataclass(frozen=True)
class City:
    """Ground materials and columns on the torus, both indexed (x, y)."""

    layout: Layout
    ground: npt.NDArray[np.uint8]
    """(1024, 1024) material of each 0.2 m cell."""
    columns: npt.NDArray[np.uint64]
    """(512, 512) bit k is set where 0.4 k .. 0.4 (k + 1) m above the ground is solid."""
    style: npt.NDArray[np.uint8]
    """(512, 512) index into the style tables."""
    style_label: npt.NDArray[np.uint8]
    style_texture: npt.NDArray[np.uint8]
    style_color: npt.NDArray[np.float32]
    style_detail: npt.NDArray[np.float32]
    ground_color: npt.NDArray[np.float32]
    """(materials, 3) linear RGB, 0..1."""
    lamps: npt.NDArray[np.float64]
    """(N, 2) street lamps."""


class _Builder:
    def __init__(self, layout: Layout, rng: np.random.Generator) -> None:
        self.layout = layout
        self.rng = rng
        self.ground = np.full((GROUND_CELLS, GROUND_CELLS), GRASS, dtype=np.uint8)
        self.columns = np.zeros((COLUMN_CELLS, COLUMN_CELLS), dtype=np.uint64)
        self.style = np.zeros((COLUMN_CELLS, COLUMN_CELLS), dtype=np.uint8)
        self.styles = Styles([], [], [], [])
        self.lamps: list[tuple[float, float]] = []
        manmade, vegetation = OCC3D.id("manmade"), OCC3D.id("vegetation")
        grey = rng.uniform(0.25, 0.5)
        self.pole = self.styles.add(manmade, PLAIN, (grey, grey, grey))
        self.fences = [self.styles.add(manmade, PLAIN, rng.uniform(0.15, 0.6, 3)) for _ in range(4)]
        self.trees = [
            self.styles.add(vegetation, TREE, _green(rng), (rng.uniform(1.8, 2.6), 0, 0)) for _ in range(6)
        ]
        self.hedges = [self.styles.add(vegetation, HEDGE, _green(rng)) for _ in range(4)]
        self.facades = [
            self.styles.add(
                manmade,
                FACADE,
                _facade_color(rng),
                (rng.uniform(1.8, 4.0), rng.uniform(2.9, 3.8), rng.uniform(0.1, 0.5)),
            )
            for _ in range(40)
        ]

    # Both fills take (axis, along0, along1, across0, across1): streets along y swap the roles of x and y.
    def paint(self, axis: int, a0: float, a1: float, c0: float, c1: float, material: int) -> None:
        along, across = _cells(a0, a1, GROUND_CELL, GROUND_CELLS), _cells(c0, c1, GROUND_CELL, GROUND_CELLS)
        self.ground[np.ix_(along, across) if axis == 0 else np.ix_(across, along)] = material

    def fill(
        self, axis: int, a0: float, a1: float, c0: float, c1: float, z0: float, z1: float, style: int
    ) -> None:
        along, across = _cells(a0, a1, COLUMN_CELL, COLUMN_CELLS), _cells(c0, c1, COLUMN_CELL, COLUMN_CELLS)
        index = np.ix_(along, across) if axis == 0 else np.ix_(across, along)
        self.columns[index] |= _bits(z0, z1)
        self.style[index] = style

    def free(self, x: float, y: float) -> bool:
        """Whether a pole or trunk may stand here: no road, no building."""
        material = self.ground[int(x / GROUND_CELL) % GROUND_CELLS, int(y / GROUND_CELL) % GROUND_CELLS]
        column = self.columns[int(x / COLUMN_CELL) % COLUMN_CELLS, int(y / COLUMN_CELL) % COLUMN_CELLS]
        return bool(GROUND_CLASS[material] != OCC3D.id("driveable_surface") and column == 0)

    def street_ground(self) -> None:
        for street in self.layout.streets:
            for side, sign in ((0, -1), (1, 1)):
                road, verge = street.road(side), street.verge[side]
                self._band(street, sign, road, road + verge, GRASS if self.rng.random() < 0.8 else SOIL)
        for street in self.layout.streets:
            material = CONCRETE if self.rng.random() < 0.6 else PAVING
            for side, sign in ((0, -1), (1, 1)):
                inner = street.road(side) + street.verge[side]
                self._band(street, sign, inner, inner + street.sidewalk[side], material)
                self._band(street, sign, street.road(side), street.road(side) + 0.25, KERB)
        for street in self.layout.streets:
            for side, sign in ((0, -1), (1, 1)):
                self._band(street, sign, 0.0, street.road(side), ASPHALT)

    def _band(self, street: Street, sign: int, near: float, far: float, material: int) -> None:
        if far > near:
            c0, c1 = sorted((street.center + sign * near, street.center + sign * far))
            self.paint(street.axis, 0.0, PERIOD, c0, c1, material)

    def markings(self) -> None:
        for street in self.layout.streets:
            for begin, end in self._stretches(street):
                self._mark_stretch(street, begin, end)

    def _stretches(self, street: Street) -> list[tuple[float, float]]:
        """The parts of a street between its junctions, as along coordinates."""
        others = [self.layout.streets[i] for i in self.layout.along(1 - street.axis)]
        ends = [(other.center - other.road(0), other.center + other.road(1)) for other in others]
        return [
            (ends[i][1], ends[(i + 1) % len(ends)][0] + (PERIOD if i + 1 == len(ends) else 0.0))
            for i in range(len(ends))
        ]

    def _mark_stretch(self, street: Street, begin: float, end: float) -> None:
        axis, center = street.axis, street.center
        inset = CROSSING_GAP + CROSSING_WIDTH + 1.0
        if self.rng.random() < 0.6:
            for c in (-0.2, 0.2):
                self.paint(axis, begin + inset, end - inset, center + c - 0.1, center + c + 0.1, YELLOW)
        else:
            for a in np.arange(begin + inset, end - inset, 6.0):
                self.paint(axis, a, a + 3.0, center - 0.1, center + 0.1, WHITE)
        for side, sign in ((0, -1), (1, 1)):
            for lane in range(1, street.lanes):
                c = center + sign * lane * street.lane_width
                for a in np.arange(begin + inset, end - inset, 6.0):
                    self.paint(axis, a, a + 2.5, c - 0.1, c + 0.1, WHITE)
            if street.parking[side]:
                edge = center + sign * street.lanes * street.lane_width
                kerb = edge + sign * PARKING_WIDTH
                for a in np.arange(begin + inset, end - inset, 6.0):
                    self.paint(axis, a, a + 0.2, min(edge, kerb), max(edge, kerb), WHITE)
                self.paint(axis, begin + inset, end - inset, edge - 0.1, edge + 0.1, WHITE)
        # Who drives towards larger coordinates stops before `end`, on its right half; the others after `begin`.
        for a, direction in ((end, 1), (begin, -1)):
            stop = a - direction * (CROSSING_GAP + CROSSING_WIDTH + 0.6)
            right = -direction if axis == 0 else direction
            half = street.road(1 if right > 0 else 0)
            c0, c1 = sorted((center, center + right * half))
            self.paint(
                axis, min(stop, stop - direction * 0.4), max(stop, stop - direction * 0.4), c0, c1, WHITE
            )
            first, last = sorted(
                (a - direction * CROSSING_GAP, a - direction * (CROSSING_GAP + CROSSING_WIDTH))
            )
            for c in np.arange(center - street.road(0) + 0.3, center + street.road(1) - 0.5, 1.2):
                self.paint(axis, first, last, c, c + 0.6, WHITE)

    def blocks(self) -> None:
        """Fill the plots between the streets."""
        xs = [self.layout.streets[i] for i in self.layout.along(1)]
        ys = [self.layout.streets[i] for i in self.layout.along(0)]
        for i, left in enumerate(xs):
            x0 = left.center + left.extent(1)
            right = xs[(i + 1) % len(xs)]
            x1 = right.center - right.extent(0) + (PERIOD if i + 1 == len(xs) else 0.0)
            for j, lower in enumerate(ys):
                y0 = lower.center + lower.extent(1)
                upper = ys[(j + 1) % len(ys)]
                y1 = upper.center - upper.extent(0) + (PERIOD if j + 1 == len(ys) else 0.0)
                self._block(x0, x1, y0, y1)

    def _block(self, x0: float, x1: float, y0: float, y1: float) -> None:
        rng = self.rng
        if rng.random() < 0.15:
            self._park(x0, x1, y0, y1)
            return
        courtyard = int(rng.choice([GRASS, PAVING, TARMAC]))
        self.paint(0, x0, x1, y0, y1, courtyard)
        depth = min(15.0, (min(x1 - x0, y1 - y0)) / 2 - 1.0)
        # Rows of houses along the four sides; the rows along y leave the corners to those along x.
        self._row(0, x0, x1, y0, 1, depth)
        self._row(0, x0, x1, y1, -1, depth)
        self._row(1, y0 + depth + 2, y1 - depth - 2, x0, 1, depth)
        self._row(1, y0 + depth + 2, y1 - depth - 2, x1, -1, depth)

    def _row(self, axis: int, a0: float, a1: float, front: float, inward: int, depth: float) -> None:
        """Lots along one side of a block; ``front`` is where the sidewalk ends."""
        rng, a = self.rng, a0
        while a + 6.0 < a1:
            width = min(float(rng.uniform(8.0, 22.0)), a1 - a)
            setback = float(rng.choice([0.0, 0.4, 2.0, 4.0]))
            kind = rng.choice(["house", "garden", "lot"], p=[0.80, 0.13, 0.07])
            c0, c1 = sorted((front, front + inward * (depth if kind != "house" else setback)))
            if c1 > c0:
                yard = {"house": int(rng.choice([GRASS, PAVING])), "garden": GRASS, "lot": TARMAC}[str(kind)]
                self.paint(axis, a, a + width, c0, c1, yard)
            if kind == "house":
                deep = float(rng.uniform(0.75, 1.0)) * depth
                h0, h1 = sorted((front + inward * setback, front + inward * deep))
                style = int(rng.choice(self.facades))
                height = float(rng.integers(2, 7)) * self.styles.detail[style][1] + 0.6
                self.fill(axis, a, a + width, h0, h1, 0.0, min(height, 25.2), style)
                if setback >= 2.0 and rng.random() < 0.5:
                    self._edge(axis, a, a + width, front, inward)
            elif kind == "garden":
                self._edge(axis, a, a + width, front, inward)
                for _ in range(int(rng.integers(1, 4))):
                    self._tree(axis, rng.uniform(a, a + width), front + inward * rng.uniform(3.0, depth))
            a += width + float(rng.choice([0.0, 2.4], p=[0.75, 0.25]))

    def _edge(self, axis: int, a0: float, a1: float, front: float, inward: int) -> None:
        """A hedge, a fence or a wall along the sidewalk, with a gate in it."""
        rng = self.rng
        hedge = rng.random() < 0.5
        style = int(rng.choice(self.hedges if hedge else self.fences))
        height = float(rng.choice([0.8, 1.2, 1.6]))
        thick = 0.8 if hedge else 0.4
        gate = rng.uniform(a0, max(a1 - 2.5, a0 + 0.1))
        c0, c1 = sorted((front, front + inward * thick))
        for begin, end in ((a0, gate), (gate + 2.0, a1)):
            if end - begin > 0.8:
                self.fill(axis, begin, end, c0, c1, 0.0, height, style)

    def _park(self, x0: float, x1: float, y0: float, y1: float) -> None:
        rng = self.rng
        self.paint(0, x0, x1, y0, y1, GRASS)
        middle = rng.uniform(0.3, 0.7) * (y1 - y0) + y0
        self.paint(0, x0, x1, middle - 1.2, middle + 1.2, PAVING)
        for _ in range(int((x1 - x0) * (y1 - y0) / 90.0)):
            x, y = rng.uniform(x0 + 1, x1 - 1), rng.uniform(y0 + 1, y1 - 1)
            if rng.random() < 0.6:
                self._tree(0, x, y)
            elif abs(y - middle) > 2.0:
                size = rng.uniform(0.8, 2.4)
                self.fill(
                    0, x, x + size, y, y + size, 0.0, rng.uniform(0.6, 1.6), int(rng.choice(self.hedges))
                )

    def _tree(self, axis: int, along: float, across: float) -> None:
        """A trunk under a crown with holes, where there is room for a trunk."""
        rng = self.rng
        x, y = (along, across) if axis == 0 else (across, along)
        if not self.free(x, y):
            return
        style = int(rng.choice(self.trees))
        foot, radius = self.styles.detail[style][0], rng.uniform(1.2, 2.6)
        tall = rng.uniform(2.5, 5.5)
        self.fill(0, x, x + 0.3, y, y + 0.3, 0.0, foot + 0.8, style)
        reach = int(np.ceil(radius / COLUMN_CELL))
        for i in range(-reach, reach + 1):
            for j in range(-reach, reach + 1):
                inside = 1.0 - ((i * i + j * j) * COLUMN_CELL**2) / radius**2
                if inside <= 0.0 or (inside < 0.5 and rng.random() < 0.25):
                    continue
                ix = (int(x / COLUMN_CELL) + i) % COLUMN_CELLS
                iy = (int(y / COLUMN_CELL) + j) % COLUMN_CELLS
                if self.columns[ix, iy] and self.styles.texture[self.style[ix, iy]] != TREE:
                    continue
                half = tall / 2 * np.sqrt(inside) * rng.uniform(0.8, 1.1)
                middle = foot + tall / 2
                self.columns[ix, iy] |= _bits(middle - half, middle + half)
                self.style[ix, iy] = style

    def kerbside(self) -> None:
        """Lamps, traffic lights, trees, bins and shelters beside the roads."""
        rng = self.rng
        for street in self.layout.streets:
            for side, sign in ((0, -1), (1, 1)):
                kerb = street.center + sign * street.road(side)
                has_trees = rng.random() < (0.9 if street.verge[side] else 0.5)
                for a in np.arange(rng.uniform(0, 8), PERIOD - 4, 8.5):
                    draw = rng.random()
                    across = kerb + sign * max(0.7, street.verge[side] / 2)
                    if has_trees and draw < 0.65:
                        self._tree(street.axis, a, across)
                    elif draw < 0.75:
                        self._post(street.axis, a, kerb + sign * 0.5, float(rng.choice([1.2, 2.8])))
                    elif draw < 0.80 and street.sidewalk[side] > 2.8:
                        back = kerb + sign * (street.verge[side] + street.sidewalk[side] - 1.0)
                        if self._free_along(street.axis, a, back):
                            style = int(rng.choice(self.fences))
                            self.fill(street.axis, a, a + 2.8, back - 0.4, back + 0.4, 0.0, 2.4, style)
                for a in np.arange(rng.uniform(0, 20), PERIOD - 5, 24.0):
                    if self._post(street.axis, a, kerb + sign * 0.6, 6.4):
                        self.lamps.append((a, kerb) if street.axis == 0 else (kerb, a))
                for begin, end in self._stretches(street):
                    for a in (begin - 0.0 + CROSSING_GAP + 3.6, end - CROSSING_GAP - 3.6):
                        self._post(street.axis, a, kerb + sign * 0.6, 4.4)

    def _free_along(self, axis: int, along: float, across: float) -> bool:
        points = [(along + d, across + e) for d in (0.0, 1.4, 2.8) for e in (-0.4, 0.4)]
        return all(self.free(*(p if axis == 0 else p[::-1])) for p in points)

    def _post(self, axis: int, along: float, across: float, height: float) -> bool:
        x, y = (along, across) if axis == 0 else (across, along)
        if not self.free(x, y):
            return False
        self.fill(0, x, x + 0.01, y, y + 0.01, 0.0, height, self.pole)
        return True


def build(layout: Layout, rng: np.random.Generator) -> City:
    """The city on a layout, all its choices drawn from ``rng``."""
    builder = _Builder(layout, rng)
    builder.blocks()
    builder.street_ground()
    builder.markings()
    builder.kerbside()
    asphalt = rng.uniform(0.10, 0.22) * np.array([1.0, 1.0, rng.uniform(1.0, 1.1)])
    pale = rng.uniform(0.34, 0.55) * np.array([1.0, rng.uniform(0.93, 1.0), rng.uniform(0.8, 0.98)])
    paving = rng.uniform(0.3, 0.5) * np.array([1.0, rng.uniform(0.7, 0.95), rng.uniform(0.6, 0.9)])
    grass = np.array([rng.uniform(0.12, 0.22), rng.uniform(0.22, 0.36), rng.uniform(0.05, 0.12)])
    soil = np.array([0.30, 0.22, 0.14]) * rng.uniform(0.7, 1.2)
    white, yellow = np.full(3, rng.uniform(0.6, 0.85)), np.array([0.75, 0.55, 0.12])
    colors = np.stack([asphalt, white, yellow, pale, pale * 0.75, paving, grass, soil, asphalt * 0.8])
    return City(
        layout=layout,
        ground=builder.ground,
        columns=builder.columns,
        style=builder.style,
        style_label=np.array(builder.styles.label, dtype=np.uint8),
        style_texture=np.array(builder.styles.texture, dtype=np.uint8),
        style_color=np.array(builder.styles.color, dtype=np.float32),
        style_detail=np.array(builder.styles.detail, dtype=np.float32),
        ground_color=colors.astype(np.float32),
        lamps=np.array(builder.lamps, dtype=np.float64).reshape(-1, 2),
    )


def _cells(low: float, high: float, cell: float, count: int) -> npt.NDArray[np.int64]:
    """Wrapped indices of the cells between two coordinates, at least one."""
    first = int(np.floor(low / cell + 1e-6))
    last = max(int(np.ceil(high / cell - 1e-6)), first + 1)
    return np.arange(first, last) % count


def _bits(z0: float, z1: float) -> np.uint64:
    """The bits of the layers between two heights in metres, at least one."""
    first = min(max(round(z0 / COLUMN_CELL), 0), LAYERS - 1)
    last = min(max(round(z1 / COLUMN_CELL), first + 1), LAYERS)
    return np.uint64(((1 << last) - 1) & ~((1 << first) - 1))


def _green(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return np.array([rng.uniform(0.07, 0.22), rng.uniform(0.17, 0.32), rng.uniform(0.03, 0.10)])


def _facade_color(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    base = rng.choice([0.18, 0.3, 0.45, 0.6])
    tint = np.array([1.0, rng.uniform(0.65, 1.0), rng.uniform(0.5, 1.0)])
    return base * rng.uniform(0.85, 1.15) * tint
