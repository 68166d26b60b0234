"""Everything that stands or moves in the streets: its shape as boxes, and where it is placed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gdfusion_ros.labels import OCC3D
from gdfusion_ros.sources.world.layout import PARKING_WIDTH, PERIOD, Layout

PAINT, GLASS, COACH, RUBBER, STRIPES, PERSON, PLANK = range(7)
"""How a part is drawn: car body with lights, dark glass under a painted roof, body with a window band, tyres,
red and white stripes, a clothed person, one flat colour."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """A box in fractions of its object's length (-0.5 rear .. 0.5 front), width (-0.5 .. 0.5) and height (0 .. 1)."""

    x: Range
    y: Range
    z: Range
    look: int


@dataclass(frozen=True)
class Kind:
    """A class of objects: ranges of its size in metres, and its parts."""

    label: int
    length: Range
    width: Range
    height: Range
    parts: tuple[Part, ...]
    whole: bool = False
    """Its ground truth is its whole bounding box: thin things (a bicycle's frame) fill no sample of a voxel."""


_FULL, _W = (-0.5, 0.5), (-0.48, 0.48)
_TRUCK = (
    Part(_FULL, (-0.46, 0.46), (0.08, 0.28), RUBBER),
    Part((0.24, 0.5), _FULL, (0.14, 0.72), GLASS),
    Part((-0.5, 0.22), _FULL, (0.28, 1.0), PLANK),
    Part((0.24, 0.44), _W, (0.0, 0.2), RUBBER),
    Part((-0.45, -0.1), _W, (0.0, 0.24), RUBBER),
)
KINDS: dict[str, Kind] = {
    "car": Kind(
        OCC3D.id("car"),
        (3.9, 4.9),
        (1.75, 2.0),
        (1.4, 1.75),
        (
            Part(_FULL, _FULL, (0.14, 0.58), PAINT),
            Part((-0.40, 0.22), (-0.44, 0.44), (0.58, 1.0), GLASS),
            Part((-0.40, 0.40), _W, (0.0, 0.36), RUBBER),
        ),
    ),
    "truck": Kind(OCC3D.id("truck"), (6.5, 9.0), (2.3, 2.6), (2.9, 3.6), _TRUCK),
    "bus": Kind(
        OCC3D.id("bus"),
        (10.5, 12.5),
        (2.5, 2.65),
        (3.0, 3.4),
        (Part(_FULL, _FULL, (0.1, 1.0), COACH), Part((-0.4, 0.42), _W, (0.0, 0.28), RUBBER)),
    ),
    "bicycle": Kind(
        OCC3D.id("bicycle"),
        (1.7, 1.9),
        (0.55, 0.65),
        (1.6, 1.8),
        (
            Part(_FULL, (-0.1, 0.1), (0.0, 0.42), RUBBER),
            Part((-0.22, 0.10), (-0.4, 0.4), (0.35, 1.0), PERSON),
        ),
        whole=True,
    ),
    "parked bicycle": Kind(
        OCC3D.id("bicycle"),
        (1.7, 1.9),
        (0.5, 0.6),
        (1.0, 1.15),
        (
            Part(_FULL, (-0.12, 0.12), (0.0, 0.65), RUBBER),
            Part((-0.2, 0.38), (-0.2, 0.2), (0.55, 0.9), PAINT),
            Part((0.3, 0.4), _FULL, (0.85, 1.0), RUBBER),
        ),
        whole=True,
    ),
    "motorcycle": Kind(
        OCC3D.id("motorcycle"),
        (2.0, 2.3),
        (0.75, 0.9),
        (1.55, 1.7),
        (
            Part(_FULL, (-0.22, 0.22), (0.0, 0.42), RUBBER),
            Part((-0.35, 0.38), (-0.4, 0.4), (0.25, 0.58), PAINT),
            Part((-0.25, 0.08), (-0.45, 0.45), (0.5, 1.0), PERSON),
        ),
        whole=True,
    ),
    "parked motorcycle": Kind(
        OCC3D.id("motorcycle"),
        (2.0, 2.3),
        (0.75, 0.9),
        (1.1, 1.25),
        (
            Part(_FULL, (-0.22, 0.22), (0.0, 0.55), RUBBER),
            Part((-0.35, 0.38), (-0.4, 0.4), (0.3, 0.85), PAINT),
            Part((0.25, 0.4), _FULL, (0.8, 1.0), RUBBER),
        ),
        whole=True,
    ),
    "pedestrian": Kind(
        OCC3D.id("pedestrian"),
        (0.5, 0.65),
        (0.55, 0.7),
        (1.55, 1.9),
        (
            Part((-0.3, 0.3), (-0.35, 0.35), (0.0, 0.48), PERSON),
            Part((-0.42, 0.42), _FULL, (0.45, 0.84), PERSON),
            Part((-0.25, 0.25), (-0.22, 0.22), (0.84, 1.0), PERSON),
        ),
        whole=True,
    ),
    "cone": Kind(
        OCC3D.id("traffic_cone"),
        (0.5, 0.55),
        (0.5, 0.55),
        (0.8, 1.0),
        (
            Part(_FULL, _FULL, (0.0, 0.08), STRIPES),
            Part((-0.36, 0.36), (-0.36, 0.36), (0.08, 0.45), STRIPES),
            Part((-0.22, 0.22), (-0.22, 0.22), (0.45, 1.0), STRIPES),
        ),
        whole=True,
    ),
    "barrier": Kind(
        OCC3D.id("barrier"),
        (2.2, 2.8),
        (0.5, 0.6),
        (0.9, 1.1),
        (Part(_FULL, _FULL, (0.0, 0.45), PLANK), Part(_FULL, (-0.3, 0.3), (0.45, 1.0), STRIPES)),
        whole=True,
    ),
}


@dataclass(frozen=True)
class Thing:
    """One object: what it is, how large, what colour. Where it is, its placement or its trajectory says."""

    kind: str
    size: tuple[float, float, float]
    color: tuple[float, float, float]


@dataclass(frozen=True)
class Placement:
    """An object that stays where it is: unwrapped position of its middle in metres, heading in radians."""

    thing: Thing
    x: float
    y: float
    yaw: float


def make(kind: str, rng: np.random.Generator) -> Thing:
    """An object of a kind, of random size and colour."""
    shape = KINDS[kind]
    size = (
        float(rng.uniform(*shape.length)),
        float(rng.uniform(*shape.width)),
        float(rng.uniform(*shape.height)),
    )
    return Thing(kind, size, _color(kind, rng))


def _color(kind: str, rng: np.random.Generator) -> tuple[float, float, float]:
    if kind == "barrier":
        return (0.7, 0.7, 0.66) if rng.random() < 0.5 else (0.75, 0.2, 0.08)
    if kind == "cone":
        return (0.85, 0.28, 0.04)
    if kind == "bus":
        return _pick(
            rng,
            [(0.7, 0.1, 0.08), (0.1, 0.25, 0.6), (0.75, 0.55, 0.08), (0.75, 0.75, 0.75), (0.1, 0.45, 0.2)],
        )
    if kind == "truck":
        return _pick(
            rng, [(0.75, 0.75, 0.75), (0.55, 0.55, 0.5), (0.1, 0.2, 0.5), (0.6, 0.35, 0.1), (0.3, 0.32, 0.3)]
        )
    if kind in ("pedestrian", "bicycle", "motorcycle"):
        return _pick(rng, [tuple(rng.uniform(0.05, 0.6, 3))])
    greys = [(g, g, g) for g in (0.03, 0.12, 0.3, 0.7)]
    return _pick(rng, [*greys, (0.5, 0.05, 0.04), (0.05, 0.12, 0.4), (0.08, 0.25, 0.12), (0.45, 0.35, 0.2)])


def _pick(rng: np.random.Generator, colors: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    r, g, b = np.clip(np.asarray(colors[int(rng.integers(len(colors)))]) * rng.uniform(0.8, 1.2), 0.0, 1.0)
    return float(r), float(g), float(b)


def furnish(layout: Layout, rng: np.random.Generator) -> list[Placement]:
    """Parked vehicles, racks of bicycles, and road works, along all streets."""
    placed: list[Placement] = []
    for street in layout.streets:
        others = [layout.streets[i] for i in layout.along(1 - street.axis)]
        junctions = [(o.center - o.road(0) - 9.0, o.center + o.road(1) + 9.0) for o in others]

        def blocked(a: float, spans: list[tuple[float, float]] = junctions) -> bool:
            return any((a - low) % PERIOD < high - low for low, high in spans)

        for side, sign in ((0, -1), (1, 1)):
            heading = (
                (0.0 if side == 0 else np.pi)
                if street.axis == 0
                else (np.pi / 2 if side == 1 else -np.pi / 2)
            )
            kerb = street.center + sign * street.road(side)
            works = [float(a) for a in rng.uniform(0, PERIOD, 2) if rng.random() < 0.85]
            length = float(rng.uniform(12.0, 24.0))
            inner = kerb - sign * (PARKING_WIDTH if street.parking[side] else 1.2)
            for begin in works:
                placed += _road_works(street.axis, begin, length, inner, kerb, heading, blocked, rng)
            if street.parking[side]:
                for a in np.arange(3.0, PERIOD - 3.0, 6.0):
                    closed = any((a - begin + 5.0) % PERIOD < length + 10.0 for begin in works)
                    if blocked(a) or closed or rng.random() < 0.32:
                        continue
                    placed += _parked(street.axis, a, kerb - sign * 1.15, heading, rng)
            for a in np.arange(rng.uniform(5, 25), PERIOD - 8.0, 28.0):
                if blocked(a) or rng.random() < 0.45:
                    continue
                across = kerb + sign * (street.verge[side] + 1.0)
                for k in range(int(rng.integers(1, 5))):
                    yaw = heading + np.pi / 2 + rng.normal(0, 0.1)
                    placed.append(_put(street.axis, a + 0.9 * k, across, yaw, "parked bicycle", rng))
    return placed


def _parked(axis: int, a: float, across: float, heading: float, rng: np.random.Generator) -> list[Placement]:
    kind = str(rng.choice(["car", "truck", "parked motorcycle"], p=[0.80, 0.08, 0.12]))
    if kind == "parked motorcycle":
        spots = np.arange(-2.0, 2.1, 1.3)[: int(rng.integers(2, 5))]
        return [
            _put(axis, a + d, across, heading + np.pi / 2 + rng.normal(0, 0.15), kind, rng) for d in spots
        ]
    placement = _put(axis, a, across + rng.normal(0, 0.08), heading + rng.normal(0, 0.02), kind, rng)
    return [placement] if placement.thing.size[0] < 7.0 or rng.random() < 0.5 else []


def _road_works(axis, begin, length, inner, kerb, heading, blocked, rng) -> list[Placement]:  # type: ignore[no-untyped-def]
    """A strip beside the kerb that cones and barriers close."""
    placed = []
    barriers = rng.random() < 0.65
    for a in np.arange(begin, begin + length, 3.2 if barriers else 2.4):
        if not blocked(a):
            kind = "barrier" if barriers and rng.random() < 0.8 else "cone"
            placed.append(
                _put(axis, a, inner + rng.normal(0, 0.05), heading + rng.normal(0, 0.03), kind, rng)
            )
    for a in (begin - 2.0, begin + length + 1.0):
        for c in np.linspace(inner, kerb, 3)[:-1]:
            if not blocked(a):
                placed.append(_put(axis, a, c, heading, "cone", rng))
    return placed


def _put(
    axis: int, along: float, across: float, yaw: float, kind: str, rng: np.random.Generator
) -> Placement:
    x, y = (along, across) if axis == 0 else (across, along)
    return Placement(make(kind, rng), float(x), float(y), float(yaw))


@dataclass(frozen=True)
class PartTable:
    """The parts of many objects as arrays, each in its object's frame (x forward, origin on the ground)."""

    owner: npt.NDArray[np.int32]
    center: npt.NDArray[np.float64]
    """(P, 3) metres."""
    half: npt.NDArray[np.float64]
    """(P, 3) half edge lengths in metres."""
    look: npt.NDArray[np.int32]
    color: npt.NDArray[np.float32]

    @classmethod
    def of(cls, things: list[Thing]) -> PartTable:
        """The parts of ``things``, in their order."""
        rows = [(i, part) for i, thing in enumerate(things) for part in KINDS[thing.kind].parts]
        sizes = np.array([things[i].size for i, _ in rows]).reshape(-1, 3)
        low = np.array([(p.x[0], p.y[0], p.z[0]) for _, p in rows]).reshape(-1, 3) * sizes
        high = np.array([(p.x[1], p.y[1], p.z[1]) for _, p in rows]).reshape(-1, 3) * sizes
        return cls(
            owner=np.array([i for i, _ in rows], dtype=np.int32),
            center=(low + high) / 2,
            half=(high - low) / 2,
            look=np.array([p.look for _, p in rows], dtype=np.int32),
            color=np.array([things[i].color for i, _ in rows], dtype=np.float32).reshape(-1, 3),
        )
