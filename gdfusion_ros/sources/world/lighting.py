"""Sun, night, fog, and the cameras' tone: what holds for a whole sequence and differs between them."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from gdfusion_ros.sources.world.city import COLUMN_CELL, COLUMN_CELLS, City

Floats = npt.NDArray[np.float32]


class Light(NamedTuple):
    """Everything that shading needs to know; colours are linear RGB. A NamedTuple, because numba takes those."""

    sun: Floats
    """(3,) unit vector towards the sun."""
    sun_color: Floats
    ambient: Floats
    sky: Floats
    """(3,) colour of sky and fog."""
    fog: float
    """Extinction per metre."""
    night: float
    """0 by day, 1 at night: lamps, headlights and lit windows."""
    gain: Floats
    """(3,) exposure times white balance of the cameras."""
    gamma: float
    noise: float
    """Standard deviation of the sensor noise, of 255."""
    vignette: float


class Weather(NamedTuple):
    """A sequence's light, and how often a camera is dazzled."""

    name: str
    """``day``, ``dusk`` or ``night``, with ``fog`` where there is some."""
    light: Light
    dazzle: float
    """Chance that a glare covers part of one camera's image in one frame."""


def random_weather(rng: np.random.Generator, kind: str | None = None) -> Weather:
    """Weather of a kind (``day``, ``dusk``, ``night``, ``fog``, ``night fog``), or of a random one."""
    if kind is None:
        kind = str(rng.choice(["day", "dusk", "night", "fog", "night fog"], p=[0.50, 0.13, 0.20, 0.12, 0.05]))
    if kind not in ("day", "dusk", "night", "fog", "night fog"):
        raise ValueError(f"there is no weather {kind!r}; choose day, dusk, night, fog or night fog")
    night, fog = "night" in kind, "fog" in kind
    elevation = np.radians(rng.uniform(8, 18) if kind == "dusk" else rng.uniform(25, 65))
    azimuth = rng.uniform(0, 2 * np.pi)
    sun = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    cloud = 1.0 if fog else float(rng.choice([0.0, 0.4, 0.9], p=[0.5, 0.2, 0.3]))
    if night:
        sun_color, ambient = np.zeros(3), rng.uniform(0.05, 0.11) * np.array([0.85, 0.9, 1.2])
        sky = rng.uniform(0.01, 0.05) * np.array([0.8, 0.9, 1.3]) + (0.05 if fog else 0.0)
    else:
        warm = np.array([1.0, 0.72, 0.45]) if kind == "dusk" else np.array([1.0, 0.95, 0.88])
        sun_color = (1.0 - 0.9 * cloud) * 1.5 * warm
        ambient = (0.55 + 0.6 * cloud) * np.array([0.9, 0.97, 1.08])
        sky = (0.75 + 0.25 * cloud) * (np.array([0.62, 0.75, 0.95]) * (1 - cloud) + 0.85 * cloud)
        if kind == "dusk":
            ambient, sky = ambient * 0.6, sky * np.array([0.9, 0.7, 0.6])
    cast = np.exp(rng.normal(0.0, 0.10, 3))
    exposure = np.exp(rng.normal(0.0, 0.18)) * (2.2 if night else 1.15 if kind == "dusk" else 0.85)
    light = Light(
        sun=np.array(sun, dtype=np.float32),
        sun_color=sun_color.astype(np.float32),
        ambient=ambient.astype(np.float32),
        sky=sky.astype(np.float32),
        fog=float(1.0 / rng.uniform(22, 55) if fog else 1.0 / rng.uniform(250, 600)),
        night=1.0 if night else 0.0,
        gain=(exposure * cast).astype(np.float32),
        gamma=float(rng.uniform(0.40, 0.55)),
        noise=float(rng.uniform(5.0, 14.0) if night else rng.uniform(1.0, 5.0)),
        vignette=float(rng.uniform(0.0, 0.35)),
    )
    return Weather(kind, light, dazzle=float(rng.choice([0.0, rng.uniform(0.05, 0.3)])))


@numba.njit(cache=True, nogil=True)
def column_tops(columns: npt.NDArray[np.uint64]) -> Floats:
    """Height in metres of the highest solid cell of every column, 0 where there is none."""
    tops = np.zeros(columns.shape, np.float32)
    for i in range(columns.shape[0]):
        for j in range(columns.shape[1]):
            bits = columns[i, j]
            layers = 0
            while bits != np.uint64(0):
                bits = bits >> np.uint64(1)
                layers += 1
            tops[i, j] = layers * COLUMN_CELL
    return tops


@numba.njit(cache=True, nogil=True)
def shadow_heights(tops: Floats, sun: Floats) -> Floats:
    """Height in metres under which a column lies in the shadow of what stands towards the sun."""
    count = tops.shape[0]
    shadow = np.zeros(tops.shape, np.float32)
    flat = np.sqrt(sun[0] ** 2 + sun[1] ** 2)
    dx, dy, drop = sun[0] / flat, sun[1] / flat, sun[2] / flat * COLUMN_CELL
    reach = min(int(25.6 / max(drop, 0.05)), 90)
    for i in range(count):
        for j in range(count):
            best = 0.0
            for k in range(1, reach):
                top = tops[
                    int(np.floor(i + 0.5 + k * dx)) & (count - 1),
                    int(np.floor(j + 0.5 + k * dy)) & (count - 1),
                ]
                best = max(best, top - k * drop)
            shadow[i, j] = best
    return shadow


def lamp_light(city: City) -> Floats:
    """(512, 512) brightness that the street lamps give at night."""
    light = np.zeros((COLUMN_CELLS, COLUMN_CELLS), dtype=np.float32)
    reach = 35
    offsets = np.arange(-reach, reach + 1)
    distance = (offsets[:, None] ** 2 + offsets[None, :] ** 2) * COLUMN_CELL**2
    pool = np.maximum(1.0 / (1.0 + distance / 20.0) - 1.0 / (1.0 + (reach * COLUMN_CELL) ** 2 / 20.0), 0.0)
    for x, y in city.lamps:
        rows = (int(x / COLUMN_CELL) + offsets) % COLUMN_CELLS
        columns = (int(y / COLUMN_CELL) + offsets) % COLUMN_CELLS
        light[np.ix_(rows, columns)] += pool.astype(np.float32)
    return light
