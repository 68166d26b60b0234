"""Who drives, rides and walks where: a small traffic simulation that the whole sequence is played from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gdfusion_ros.sources.world.layout import PERIOD, Layout, Path, green
from gdfusion_ros.sources.world.objects import Placement, Thing, furnish, make

STEP = 0.1
"""Seconds of one step of the simulation."""
WARM_UP = 6.0
"""Seconds that traffic runs before the first frame."""
_KINDS = ["car", "bus", "truck", "motorcycle", "bicycle"]
_SHARES = [0.56, 0.10, 0.12, 0.11, 0.11]


@dataclass
class _Agent:
    thing: Thing
    path: Path
    s: float
    speed: float
    wish: float
    """The speed in m/s that it takes when nothing is in its way."""
    vehicle: bool


@dataclass(frozen=True)
class Poses:
    """Where all objects are at one instant: (N, 2) unwrapped metres, (N,) radians, (N, 2) m/s."""

    position: npt.NDArray[np.float64]
    yaw: npt.NDArray[np.float64]
    velocity: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Traffic:
    """All objects but the ego vehicle, moving ones first, and the ego's own drive."""

    things: list[Thing]
    ego_path: Path
    times: npt.NDArray[np.float64]
    """(T,) seconds; 0 is the first frame's anchor exposure."""
    ego_s: npt.NDArray[np.float64]
    """(T,) metres along the ego's path."""
    tracks: npt.NDArray[np.float64]
    """(T, M, 3) unwrapped x, y and continuous heading of the M moving objects."""
    still: list[Placement]

    def at(self, time: float) -> Poses:
        """Where everything is ``time`` seconds after the first frame."""
        step = (time - self.times[0]) / STEP
        first = int(np.clip(np.floor(step), 0, len(self.times) - 2))
        fraction = step - first
        moving = self.tracks.shape[1]
        position = np.empty((len(self.things), 2))
        yaw = np.empty(len(self.things))
        velocity = np.zeros((len(self.things), 2))
        now = (1 - fraction) * self.tracks[first] + fraction * self.tracks[first + 1]
        position[:moving], yaw[:moving] = now[:, :2], now[:, 2]
        velocity[:moving] = (self.tracks[first + 1, :, :2] - self.tracks[first, :, :2]) / STEP
        for i, placement in enumerate(self.still, moving):
            position[i] = placement.x, placement.y
            yaw[i] = placement.yaw
        return Poses(position, yaw, velocity)

    def ego_at(self, time: float) -> tuple[npt.NDArray[np.float64], float]:
        """(2,) unwrapped metres and heading of the ego's rear axle, ``time`` seconds after the first frame."""
        point, yaw = self.ego_path.at(float(np.interp(time, self.times, self.ego_s)))
        return point, float(yaw)


def simulate(layout: Layout, seconds: float, rng: np.random.Generator) -> Traffic:
    """Traffic for ``seconds`` from the first frame on, all its choices drawn from ``rng``."""
    still = furnish(layout, rng)
    horizon = WARM_UP + seconds + 2.0
    agents = [
        _ego(layout, horizon, rng),
        *_vehicles(layout, horizon, rng),
        *_pedestrians(layout, horizon, rng),
    ]
    steps = int(np.ceil(horizon / STEP)) + 1
    s = np.empty((steps, len(agents)))
    size = np.array([agent.thing.size for agent in agents])
    parked = np.array([[p.x, p.y, max(p.thing.size[:2])] for p in still]).reshape(-1, 3)
    tables = [_table(agent.path) for agent in agents]
    for k in range(steps):
        s[k] = [agent.s for agent in agents]
        if k + 1 < steps:
            _advance(agents, tables, size, parked, k * STEP)
    times = np.arange(steps) * STEP - WARM_UP
    movers = agents[1:]
    tracks = [np.column_stack(agent.path.at(s[:, i])) for i, agent in enumerate(movers, 1)]
    return Traffic(
        things=[agent.thing for agent in movers] + [placement.thing for placement in still],
        ego_path=agents[0].path,
        times=times,
        ego_s=s[:, 0],
        tracks=np.stack(tracks, 1),
        still=still,
    )


def _table(path: Path) -> npt.NDArray[np.float64]:
    """(N, 4): x, y, yaw, limit of a path, for look-up by index."""
    return np.column_stack([path.points, path.yaw, path.limit])


def _ego(layout: Layout, seconds: float, rng: np.random.Generator) -> _Agent:
    street = int(rng.integers(len(layout.streets)))
    lane = int(rng.integers(layout.streets[street].lanes))
    direction = int(rng.choice([-1, 1]))
    path = layout.drive(rng, street, direction, lane, rng.uniform(0, PERIOD), 12.0 * seconds, turning=0.5)
    wish = float(rng.uniform(3.5, 10.0))
    return _Agent(make("car", rng), path, 2.0, wish * 0.8, wish, True)


def _vehicles(layout: Layout, seconds: float, rng: np.random.Generator) -> list[_Agent]:
    agents = []
    density = rng.uniform(22.0, 42.0)
    for index, street in enumerate(layout.streets):
        for direction in (-1, 1):
            for lane in range(street.lanes):
                a = rng.uniform(0, density)
                while a < PERIOD - 12.0:
                    thing = make(str(rng.choice(_KINDS, p=_SHARES)), rng)
                    outer = lane + 1 == street.lanes
                    slow = thing.kind == "bicycle"
                    shift = street.lane_width / 2 - 0.7 if slow and outer else 0.0
                    wish = float(rng.uniform(3.0, 6.0) if slow else rng.uniform(6.0, 12.0))
                    path = layout.drive(rng, index, direction, lane, a, (wish + 2) * seconds, 0.25, shift)
                    agents.append(_Agent(thing, path, 0.0, wish * 0.7, wish, True))
                    a += thing.size[0] + rng.uniform(0.4, 1.6) * density
    return agents


def _pedestrians(layout: Layout, seconds: float, rng: np.random.Generator) -> list[_Agent]:
    agents = []
    density = rng.uniform(9.0, 26.0)
    for index in range(len(layout.streets)):
        for side in (0, 1):
            a = rng.uniform(0, density)
            while a < PERIOD:
                wish = 0.0 if rng.random() < 0.15 else float(rng.uniform(0.8, 1.9))
                direction = int(rng.choice([-1, 1]))
                if rng.random() < 0.06:
                    path = layout.cross(index, side, a)
                else:
                    path = layout.walk(rng, index, side, direction, a, 2.2 * seconds + 10.0)
                agents.append(_Agent(make("pedestrian", rng), path, 0.0, wish, wish, False))
                a += rng.uniform(0.2, 1.8) * density
    return agents


def _advance(
    agents: list[_Agent],
    tables: list[npt.NDArray[np.float64]],
    size: npt.NDArray[np.float64],
    parked: npt.NDArray[np.float64],
    time: float,
) -> None:
    """One step: everybody goes on along its path, keeps clear of whoever is in front, and stops at red."""
    rows = np.array(
        [table[min(int(agent.s * 4.0), len(table) - 1)] for agent, table in zip(agents, tables, strict=True)]
    )
    speed = np.array([agent.speed for agent in agents])
    wish = np.minimum([agent.wish for agent in agents], rows[:, 3])
    drivers = np.array([agent.vehicle for agent in agents])
    gap, leader_speed = _leaders(rows, size, speed, parked, int(drivers.sum()))
    for i, agent in enumerate(agents):
        distance, lead = (gap[i], leader_speed[i]) if agent.vehicle else (1e3, 0.0)
        if agent.vehicle:  # slow down before the bend, not in it
            table = tables[i]
            wish[i] = min(wish[i], table[min(int((agent.s + 0.9 * speed[i]) * 4.0), len(table) - 1), 3])
        for stop, axis, phase in agent.path.gates:
            ahead = stop - agent.s - (size[i, 0] / 2 if agent.vehicle else 0.0)
            if -0.5 < ahead < 40.0 and not green(axis, phase, time) and ahead > speed[i] ** 2 / 9.0 - 0.5:
                if ahead < distance:
                    distance, lead = max(ahead, 0.05), 0.0
                break
        if agent.vehicle:
            # The intelligent driver model (Treiber, Hennecke and Helbing 2000).
            desired = 1.5 + max(0.0, speed[i] * 1.2 + speed[i] * (speed[i] - lead) / (2 * np.sqrt(2.0 * 3.0)))
            free = (speed[i] / max(wish[i], 0.1)) ** 4
            push = 2.0 * (1 - free - (desired / max(distance, 0.1)) ** 2)
            agent.speed = float(np.clip(speed[i] + np.clip(push, -7.0, 2.0) * STEP, 0.0, 14.0))
        else:
            agent.speed = 0.0 if distance < 0.4 else agent.wish
        if agent.s + agent.speed * STEP >= agent.path.length - 0.5:
            agent.speed = 0.0
        agent.s += agent.speed * STEP


def _leaders(
    rows: npt.NDArray[np.float64],
    size: npt.NDArray[np.float64],
    speed: npt.NDArray[np.float64],
    parked: npt.NDArray[np.float64],
    drivers: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For the first ``drivers`` agents, the free metres to the nearest thing ahead, and its speed along the lane."""
    position = np.concatenate([rows[:, :2], parked[:, :2]])
    heading = np.concatenate([rows[:, 2], np.zeros(len(parked))])
    along = np.concatenate([speed, np.zeros(len(parked))])
    # What stands at the kerb is wide of every lane, so it only matters when its middle is truly in the way.
    half_width = np.concatenate([size[:, 1] / 2 + 0.25, np.full(len(parked), 0.0)])
    half_length = np.concatenate([size[:, 0] / 2, parked[:, 2] / 2])
    rows, size = rows[:drivers], size[:drivers]
    delta = position[None, :, :] - rows[:, None, :2]
    delta -= PERIOD * np.round(delta / PERIOD)
    c, s = np.cos(rows[:, 2])[:, None], np.sin(rows[:, 2])[:, None]
    ahead = c * delta[..., 0] + s * delta[..., 1]
    aside = np.abs(-s * delta[..., 0] + c * delta[..., 1])
    inside = (ahead > 0.3) & (ahead < 40.0) & (aside < size[:, 1][:, None] / 2 + half_width[None, :])
    gap = np.where(inside, ahead - size[:, 0][:, None] / 2 - half_length[None, :], 1e3)
    nearest = gap.argmin(1)
    lead = along[nearest] * np.cos(heading[nearest] - rows[:, 2])
    return np.maximum(gap[np.arange(drivers), nearest], 0.05), np.maximum(lead, 0.0)
