"""The plan of a city: streets on a torus, and the paths that lead along them.

The city repeats every ``PERIOD`` metres along x and y, so a drive never reaches its end. Traffic keeps right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PERIOD = 204.8
"""Metres after which the city repeats, along x and y."""
PARKING_WIDTH = 2.3
CROSSING_GAP = 1.0
"""Metres between a junction's edge and its pedestrian crossing."""
CROSSING_WIDTH = 3.0
SIGNAL_CYCLE = 22.0
"""Seconds of one turn of the traffic lights: green for x, all red, green for y, all red."""
_ALL_RED = 2.5
_PATH_STEP = 0.25


@dataclass(frozen=True)
class Street:
    """A straight two-way street. Pairs are (side of smaller, side of larger across coordinate)."""

    axis: int
    """0: it runs along x and ``center`` is its y; 1: along y and ``center`` is its x."""
    center: float
    lanes: int
    """Lanes in each direction."""
    lane_width: float
    parking: tuple[bool, bool]
    verge: tuple[float, float]
    sidewalk: tuple[float, float]

    def road(self, side: int) -> float:
        """Metres from the centre to the kerb on a side (0 smaller, 1 larger coordinate)."""
        return self.lanes * self.lane_width + (PARKING_WIDTH if self.parking[side] else 0.0)

    def extent(self, side: int) -> float:
        """Metres from the centre to where the plots begin."""
        return self.road(side) + self.verge[side] + self.sidewalk[side]

    def lane(self, direction: int, index: int) -> float:
        """Across coordinate of a lane's middle; lane 0 is the innermost, ``direction`` is +1 or -1."""
        # Keeping right: who drives towards larger x has its lane at smaller y; along y it is the other way round.
        side = -direction if self.axis == 0 else direction
        return self.center + side * (index + 0.5) * self.lane_width


@dataclass(frozen=True)
class Path:
    """A way to go, as points every quarter metre."""

    points: npt.NDArray[np.float64]
    """(N, 2) unwrapped world coordinates in metres."""
    yaw: npt.NDArray[np.float64]
    """(N,) heading in radians, continuous."""
    limit: npt.NDArray[np.float64]
    """(N,) speed limit in m/s."""
    gates: tuple[tuple[float, int, float], ...]
    """(metres along the path, axis that must have green, phase of the light in seconds)."""

    @property
    def length(self) -> float:
        """Metres from the first to the last point."""
        return (len(self.points) - 1) * _PATH_STEP

    def at(
        self, s: float | npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Points (..., 2) and headings (...) at ``s`` metres along the path."""
        position = np.asarray(s, dtype=np.float64) / _PATH_STEP
        knots = np.arange(len(self.points))
        x, y = (np.interp(position, knots, self.points[:, i]) for i in (0, 1))
        return np.stack([x, y], -1), np.interp(position, knots, self.yaw)

    def limit_at(self, s: float) -> float:
        """The speed limit in m/s at ``s`` metres along the path."""
        return float(self.limit[min(max(int(s / _PATH_STEP), 0), len(self.limit) - 1)])


@dataclass(frozen=True)
class Layout:
    """All streets of a city."""

    streets: tuple[Street, ...]
    phases: npt.NDArray[np.float64]
    """(streets, streets): seconds by which the light of the junction of two streets runs ahead."""

    @classmethod
    def random(cls, rng: np.random.Generator) -> Layout:
        """Two or three streets along each axis, no two alike."""
        streets = []
        for axis in (0, 1):
            count = int(rng.choice([2, 3], p=[0.35, 0.65]))
            for i in range(count):
                lanes = int(rng.choice([1, 2], p=[0.75, 0.25]))
                streets.append(
                    Street(
                        axis=axis,
                        center=(i + rng.uniform(-0.12, 0.12) + 0.5) * PERIOD / count,
                        lanes=lanes,
                        lane_width=float(rng.uniform(3.2, 3.8)),
                        parking=(bool(rng.random() < 0.65), bool(rng.random() < 0.65)),
                        verge=tuple(float(rng.choice([0.0, rng.uniform(1.6, 2.8)])) for _ in range(2)),  # type: ignore[arg-type]
                        sidewalk=tuple(float(rng.uniform(2.4, 4.4)) for _ in range(2)),  # type: ignore[arg-type]
                    )
                )
        phases = rng.uniform(0.0, SIGNAL_CYCLE, (len(streets), len(streets)))
        both_ways: npt.NDArray[np.float64] = np.add(np.triu(phases), np.triu(phases, 1).T, dtype=np.float64)
        return cls(tuple(streets), both_ways)

    def along(self, axis: int) -> list[int]:
        """Indices of the streets that run along an axis, by coordinate."""
        return sorted(
            (i for i, s in enumerate(self.streets) if s.axis == axis), key=lambda i: self.streets[i].center
        )

    def drive(
        self,
        rng: np.random.Generator,
        street: int,
        direction: int,
        lane: int,
        start: float,
        length: float,
        turning: float,
        shift: float = 0.0,
        speed: float = 14.0,
    ) -> Path:
        """A path for a vehicle from ``start`` on a street for at least ``length`` metres.

        ``turning`` is the chance to turn at a junction; ``shift`` metres to the right of the lane's middle.
        """
        pieces: list[npt.NDArray[np.float64]] = []  # (N, 4): x, y, yaw, limit
        gates: list[tuple[float, int, float]] = []
        position, travelled, wrap = start, 0.0, np.zeros(2)
        while travelled < length:
            here = self.streets[street]
            crossing, center = self._next_junction(here.axis, direction, position)
            there = self.streets[crossing]
            entry = center - direction * there.road(0 if direction > 0 else 1)
            stop = travelled + abs(entry - position) - CROSSING_GAP - CROSSING_WIDTH - 1.0
            if (entry - position) * direction > CROSSING_GAP + CROSSING_WIDTH + 1.0:
                gates.append((stop, here.axis, float(self.phases[street, crossing])))
            across = here.lane(direction, lane) + _right(here.axis, direction) * shift + wrap[1 - here.axis]
            turn = int(rng.choice([-1, 1])) if rng.random() < turning else 0
            if (entry - position) * direction < 10.0:
                turn = 0  # too late to turn in
            if turn == 0:
                end = center + direction * (there.road(1 if direction > 0 else 0) + 6.0)
                pieces.append(_line(here.axis, direction, position, end, across, speed))
                travelled += abs(end - position)
                position = end
                continue
            new_direction = _turned(here.axis, direction, turn)
            new_lane = min(lane, there.lanes - 1)
            offset = there.lane(new_direction, new_lane) - there.center
            corner = center + offset + _right(there.axis, new_direction) * shift
            radius = 6.0 if turn < 0 else 8.5
            pieces.append(_line(here.axis, direction, position, corner - direction * radius, across, speed))
            pieces.append(_arc(here.axis, direction, new_direction, corner, across, radius))
            travelled += abs(corner - direction * radius - position) + radius * np.pi / 2
            # The across coordinate keeps the torus's turn it is in; the along coordinate starts where the arc ends.
            position = across + new_direction * radius
            wrap = np.zeros(2)
            wrap[here.axis] = center - there.center
            street, direction, lane = crossing, new_direction, new_lane
        return _assemble(pieces, gates)

    def walk(
        self, rng: np.random.Generator, street: int, side: int, direction: int, start: float, length: float
    ) -> Path:
        """A path for a pedestrian along a sidewalk, waiting for green at every street that it crosses."""
        here = self.streets[street]
        sign = 1 if side else -1
        inner = here.road(side) + here.verge[side]
        across = here.center + sign * (inner + rng.uniform(0.15, 0.85) * here.sidewalk[side])
        gates, position = [], start
        while (position - start) * direction < length:
            crossing, center = self._next_junction(here.axis, direction, position)
            there = self.streets[crossing]
            kerb = center - direction * (there.road(0 if direction > 0 else 1) + 0.6)
            if (kerb - start) * direction > 0:
                gates.append((abs(kerb - start), here.axis, float(self.phases[street, crossing])))
            position = center + direction * there.road(1 if direction > 0 else 0)
        return _assemble(
            [_line(here.axis, direction, start, start + direction * length, across, 14.0)], gates
        )

    def cross(self, street: int, side: int, at: float) -> Path:
        """A path straight across a street from one sidewalk to the other, where there is no crossing."""
        here = self.streets[street]
        begin = here.center + (1 if side else -1) * (here.road(side) + here.verge[side] + 0.5)
        end = here.center - (1 if side else -1) * (here.road(1 - side) + here.verge[1 - side] + 0.5)
        direction = 1 if end > begin else -1
        return _assemble([_line(1 - here.axis, direction, begin, end, at, 14.0)], [])

    def _next_junction(self, axis: int, direction: int, position: float) -> tuple[int, float]:
        """The next crossing street and its unwrapped centre, ahead of ``position`` along ``axis``."""
        best: tuple[float, int, float] | None = None
        for index in self.along(1 - axis):
            ahead = ((self.streets[index].center - position) * direction) % PERIOD
            if best is None or ahead < best[0]:
                best = (ahead, index, position + direction * ahead)
        assert best is not None, "every city has streets along both axes"
        return best[1], best[2]


def green(axis: int, phase: float, time: float) -> bool:
    """Whether traffic along ``axis`` has green at ``time`` seconds."""
    clock = (time + phase) % SIGNAL_CYCLE
    half = SIGNAL_CYCLE / 2
    return clock < half - _ALL_RED if axis == 0 else half <= clock < SIGNAL_CYCLE - _ALL_RED


def _right(axis: int, direction: int) -> int:
    """Sign of the across coordinate to the right of who moves along ``axis``."""
    return -direction if axis == 0 else direction


def _turned(axis: int, direction: int, turn: int) -> int:
    """Direction along the other axis after a turn (+1 left, -1 right)."""
    return direction * turn if axis == 0 else -direction * turn


def _heading(axis: int, direction: int) -> float:
    return (0.0 if direction > 0 else np.pi) if axis == 0 else (np.pi / 2 if direction > 0 else -np.pi / 2)


def _line(
    axis: int, direction: int, start: float, end: float, across: float, limit: float
) -> npt.NDArray[np.float64]:
    count = max(int(np.ceil((end - start) * direction / _PATH_STEP)), 1) + 1
    rows = np.empty((count, 4))
    rows[:, axis] = np.linspace(start, end, count)
    rows[:, 1 - axis] = across
    rows[:, 2] = _heading(axis, direction)
    rows[:, 3] = limit
    return rows


def _arc(
    axis: int, direction: int, new_direction: int, corner: float, across: float, radius: float
) -> npt.NDArray[np.float64]:
    """A quarter circle that leaves ``axis`` before ``corner`` and joins the other axis."""
    t = np.linspace(0.0, np.pi / 2, max(int(radius * np.pi / 2 / _PATH_STEP), 4))
    rows = np.empty((len(t), 4))
    rows[:, axis] = corner - direction * radius * (1.0 - np.sin(t))
    rows[:, 1 - axis] = across + new_direction * radius * (1.0 - np.cos(t))
    first, last = _heading(axis, direction), _heading(1 - axis, new_direction)
    rows[:, 2] = first + t / (np.pi / 2) * np.arctan2(np.sin(last - first), np.cos(last - first))
    rows[:, 3] = 4.5
    return rows


def _assemble(pieces: list[npt.NDArray[np.float64]], gates: list[tuple[float, int, float]]) -> Path:
    """One evenly sampled path out of its pieces."""
    rows = np.concatenate(pieces)
    steps = np.hypot(*np.diff(rows[:, :2], axis=0).T)
    keep = np.concatenate([[True], steps > 1e-6])
    rows = rows[keep]
    s = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(rows[:, :2], axis=0).T))])
    even = np.arange(0.0, s[-1], _PATH_STEP)
    columns = [
        np.interp(even, s, column) for column in (rows[:, 0], rows[:, 1], np.unwrap(rows[:, 2]), rows[:, 3])
    ]
    return Path(np.stack(columns[:2], 1), columns[2], columns[3], tuple(gates))
