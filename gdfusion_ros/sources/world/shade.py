"""From what the rays hit to the colours that a camera records."""

from __future__ import annotations

import numba
import numpy as np

from gdfusion_ros.sources.world import objects
from gdfusion_ros.sources.world.cast import COLUMN, GROUND, NOTHING
from gdfusion_ros.sources.world.city import (
    COLUMN_CELL,
    COLUMN_CELLS,
    CONCRETE,
    FACADE,
    GRASS,
    GROUND_CELL,
    GROUND_CELLS,
    HEDGE,
    PAVING,
    SOIL,
    TREE,
)

_PAINT, _GLASS, _COACH, _RUBBER = objects.PAINT, objects.GLASS, objects.COACH, objects.RUBBER
_STRIPES, _PERSON = objects.STRIPES, objects.PERSON


@numba.njit(cache=True, nogil=True, inline="always")
def _hash(a: int, b: int, c: int) -> float:
    """A number in [0, 1) that three integers determine (mixing steps of MurmurHash3)."""
    h = np.uint32((a * 374761393 + b * 668265263 + c * 2246822519) & 0xFFFFFFFF)
    h = np.uint32(((h ^ (h >> np.uint32(15))) * np.uint64(2246822507)) & np.uint64(0xFFFFFFFF))
    h = np.uint32(((h ^ (h >> np.uint32(13))) * np.uint64(3266489909)) & np.uint64(0xFFFFFFFF))
    return float(h ^ (h >> np.uint32(16))) / 4294967296.0


@numba.njit(cache=True, nogil=True)
def shade(  # type: ignore[no-untyped-def]
    image, depth, what, face, part, origin, directions, ego, city_ground, ground_color, columns_style, texture,
    style_color, style_detail, shadow, lamps, light, parts, shadows, gain, glare, seed,
):  # fmt: skip
    """Write (H, W, 3) uint8 pixels.

    ``parts``: (center, cosine, sine, half, look, color, owner) arrays. ``shadows``: (N, 6) footprints on the
    ground as x, y, cos, sin, half length, half width. ``ego``: x, y, cos, sin of the ego, whose headlights shine
    at night. ``gain``: this frame's exposure. ``glare``: (u, v, radius, strength) in pixels.
    """
    center, cosine, sine, half, look, color, owner = parts
    height, width = depth.shape
    rgb = np.zeros(3)
    for v in range(height):
        for u in range(width):
            t = np.float64(depth[v, u])
            kind = what[v, u]
            glow = 0.0
            if kind == NOTHING:
                for c in range(3):
                    rgb[c] = light.sky[c]
            else:
                x = origin[0] + t * directions[v, u, 0]
                y = origin[1] + t * directions[v, u, 1]
                z = origin[2] + t * directions[v, u, 2]
                # Metres on the surface that one pixel covers: finer textures fade into their mean.
                blur = t * (directions[v, u, 0] - directions[v, u - 1 if u > 0 else u + 1, 0]) ** 2
                blur += t * (directions[v, u, 1] - directions[v, u - 1 if u > 0 else u + 1, 1]) ** 2
                blur = np.sqrt(blur * t)
                nx, ny, nz = 0.0, 0.0, 0.0
                if kind == GROUND:
                    nz = 1.0
                    gx, gy = int(np.floor(x / GROUND_CELL)), int(np.floor(y / GROUND_CELL))
                    material = city_ground[gx & (GROUND_CELLS - 1), gy & (GROUND_CELLS - 1)]
                    rough = 0.35 if material in (GRASS, SOIL) else 0.16
                    fade = 1.0 / (1.0 + (blur / 0.15) ** 2)
                    grain = 1.0 + rough * fade * (_hash(gx & 1023, gy & 1023, 1) - 0.5)
                    grain += 0.16 * (_hash((gx >> 3) & 127, (gy >> 3) & 127, 2) - 0.5)
                    if material in (CONCRETE, PAVING):  # slabs have joints
                        joint = (gx % 8 == 0) or (gy % 8 == 0)
                        grain *= 1.0 - 0.25 * fade if joint else 1.0
                    for c in range(3):
                        rgb[c] = ground_color[material, c] * grain
                elif kind == COLUMN:
                    sign = -1.0 if directions[v, u, face[v, u]] > 0 else 1.0
                    nx = sign if face[v, u] == 0 else 0.0
                    ny = sign if face[v, u] == 1 else 0.0
                    nz = sign if face[v, u] == 2 else 0.0
                    inside_x, inside_y = x - nx * 0.05, y - ny * 0.05
                    ix = int(np.floor(inside_x / COLUMN_CELL)) & (COLUMN_CELLS - 1)
                    iy = int(np.floor(inside_y / COLUMN_CELL)) & (COLUMN_CELLS - 1)
                    iz = int(np.floor((z - nz * 0.05) / COLUMN_CELL))
                    style = columns_style[ix, iy]
                    for c in range(3):
                        rgb[c] = style_color[style, c]
                    glow = _column_texture(
                        rgb,
                        texture[style],
                        style_detail[style],
                        face[v, u],
                        x,
                        y,
                        z,
                        ix,
                        iy,
                        iz,
                        blur,
                        light.night,
                    )
                else:
                    k = part[v, u]
                    qx, qy = x - center[k, 0], y - center[k, 1]
                    lx, ly, lz = (
                        cosine[k] * qx + sine[k] * qy,
                        -sine[k] * qx + cosine[k] * qy,
                        z - center[k, 2],
                    )
                    if face[v, u] == 0:
                        sign = 1.0 if lx > 0 else -1.0
                        nx, ny = sign * cosine[k], sign * sine[k]
                    elif face[v, u] == 1:
                        sign = 1.0 if ly > 0 else -1.0
                        nx, ny = -sign * sine[k], sign * cosine[k]
                    else:
                        nz = 1.0 if lz > 0 else -1.0
                    for c in range(3):
                        rgb[c] = color[k, c]
                    glow = _part_texture(rgb, look[k], face[v, u], lx, ly, lz, half[k], z, owner[k])
                # Light: sky, sun with cast shadows, and at night lamps and the ego's own headlights.
                cx = int(np.floor((x + nx * 0.3) / COLUMN_CELL)) & (COLUMN_CELLS - 1)
                cy = int(np.floor((y + ny * 0.3) / COLUMN_CELL)) & (COLUMN_CELLS - 1)
                facing = nx * light.sun[0] + ny * light.sun[1] + nz * light.sun[2]
                sunlit = facing if facing > 0.0 and z + 0.1 >= shadow[cx, cy] else 0.0
                sky = 0.65 + 0.35 * nz
                if kind == GROUND:
                    covered = _under(shadows, x, y, light.sun)
                    sunlit *= 1.0 - covered
                    sky *= 1.0 - 0.6 * covered
                artificial = 0.0
                if light.night > 0.0:
                    artificial = 0.75 * lamps[cx, cy] / (1.0 + 0.02 * max(z - 2.0, 0.0) ** 2)
                    fx, fy = x - ego[0], y - ego[1]
                    ahead, aside = ego[2] * fx + ego[3] * fy - 2.5, -ego[3] * fx + ego[2] * fy
                    if ahead > 0.3:
                        angle = (aside / ahead) ** 2 + ((z - 0.3) / ahead) ** 2 * 6.0
                        artificial += 1.6 * np.exp(-angle * 4.0) / (1.0 + (ahead / 14.0) ** 2)
                haze = 1.0 - np.exp(-light.fog * t)
                for c in range(3):
                    warm = 1.0 if c == 0 else 0.85 if c == 1 else 0.6
                    lit = light.ambient[c] * sky + light.sun_color[c] * sunlit + artificial * warm
                    value = rgb[c] * lit if glow <= 0.0 else rgb[c] * (lit + glow)
                    rgb[c] = value * (1.0 - haze) + light.sky[c] * haze
            _record(image, v, u, rgb, light, gain, glare, width, height, seed)


@numba.njit(cache=True, nogil=True)
def _column_texture(rgb, texture, detail, face, x, y, z, ix, iy, iz, blur, night):  # type: ignore[no-untyped-def]
    """Multiply a column's colour by its texture; returns how strongly it glows by itself."""
    glow = 0.0
    if texture == FACADE and face != 2:
        along = y if face == 0 else x
        window, storey = along / detail[0], (z - 0.6) / detail[1]
        fu, fz = window - np.floor(window), storey - np.floor(storey)
        fade = 1.0 / (1.0 + (blur / (0.2 * detail[0])) ** 2)
        if 0.2 < fu < 0.78 and 0.28 < fz < 0.8:
            lit = _hash(int(np.floor(window)), int(np.floor(storey)), ix >> 5)
            if night > 0.0 and lit < detail[2]:
                glow = 2.5
                rgb[0], rgb[1], rgb[2] = 0.8, 0.6, 0.3
            else:
                shine = 0.25 + 0.3 * lit
                for c in range(3):
                    rgb[c] = rgb[c] * (1.0 - fade) * 0.8 + fade * (0.12 + 0.25 * shine)
        else:
            grain = 1.0 + 0.2 * fade * (_hash(int(np.floor(along * 4)), int(np.floor(z * 6)), 3) - 0.5)
            for c in range(3):
                rgb[c] *= grain
    elif texture == TREE and z < detail[0]:
        rgb[0], rgb[1], rgb[2] = 0.16, 0.11, 0.07
    elif texture in (TREE, HEDGE):
        leaf = 0.55 + 0.9 * _hash(ix, iy, iz)
        fine = 0.75 + 0.5 * _hash(int(np.floor(x * 8)), int(np.floor(y * 8)), int(np.floor(z * 8)))
        for c in range(3):
            rgb[c] *= leaf * fine
    return glow


@numba.njit(cache=True, nogil=True)
def _part_texture(rgb, look, face, x, y, z, half, height, owner):  # type: ignore[no-untyped-def]
    """Colour a point of an object's part, given in the part's own frame; returns how strongly it glows."""
    glow = 0.0
    up = z / half[2]
    if look == _PAINT:
        if face == 0 and half[0] > 1.2 and abs(y) > 0.55 * half[1] and -0.1 < up < 0.6:
            if x > 0:
                rgb[0], rgb[1], rgb[2], glow = 0.95, 0.95, 0.85, 1.2
            else:
                rgb[0], rgb[1], rgb[2], glow = 0.75, 0.03, 0.02, 0.6
        elif up < -0.7:
            for c in range(3):
                rgb[c] *= 0.5
    elif look == _GLASS:
        if face != 2 and -0.85 < up < 0.72 and (face == 0 or abs(x) < 0.92 * half[0]):
            rgb[0], rgb[1], rgb[2] = 0.07, 0.08, 0.1
    elif look == _COACH:
        if face == 0 and abs(y) > 0.6 * half[1] and up < -0.6:
            if x > 0:
                rgb[0], rgb[1], rgb[2], glow = 0.95, 0.95, 0.85, 1.2
            else:
                rgb[0], rgb[1], rgb[2], glow = 0.75, 0.03, 0.02, 0.6
        elif face != 2 and -0.05 < up < 0.72 and (face == 0 or (x / 1.5) - np.floor(x / 1.5) < 0.86):
            rgb[0], rgb[1], rgb[2] = 0.06, 0.07, 0.09
    elif look == _RUBBER:
        tone = 0.03
        if half[0] > 1.0 and face == 1 and 0.58 * half[0] < abs(x) < 0.86 * half[0]:
            tone = 0.22 if abs(up) < 0.45 else 0.05
        rgb[0], rgb[1], rgb[2] = tone, tone, tone
    elif look == _STRIPES:
        band = (height / 0.44) if half[0] < 0.5 else ((x + z) / 0.7)
        if band - np.floor(band) < 0.42:
            rgb[0], rgb[1], rgb[2] = 0.85, 0.85, 0.82
        else:
            rgb[0], rgb[1], rgb[2] = 0.8, 0.16, 0.03
    elif look == _PERSON:
        if height > 1.48:
            skin = 0.2 + 0.4 * _hash(owner, 5, 7)
            rgb[0], rgb[1], rgb[2] = skin, skin * 0.72, skin * 0.58
        elif height < 0.8:
            tone = 0.04 + 0.2 * _hash(owner, 1, 3)
            rgb[0], rgb[1], rgb[2] = tone, tone, tone * 1.3
    return glow


@numba.njit(cache=True, nogil=True)
def _under(shadows, x, y, sun):  # type: ignore[no-untyped-def]
    """How much objects shade a point of the ground: 1 beneath one, less at its edge."""
    covered = 0.0
    for k in range(len(shadows)):
        qx, qy = x - shadows[k, 0], y - shadows[k, 1]
        if abs(qx) > 8.0 or abs(qy) > 8.0:
            continue
        lx, ly = shadows[k, 2] * qx + shadows[k, 3] * qy, -shadows[k, 3] * qx + shadows[k, 2] * qy
        out = max(abs(lx) - shadows[k, 4], abs(ly) - shadows[k, 5])
        if out < 0.5:
            covered = max(covered, 0.9 if out < 0.0 else 0.9 * (1.0 - 2.0 * out))
    return covered


@numba.njit(cache=True, nogil=True)
def _record(image, v, u, rgb, light, gain, glare, width, height, seed):  # type: ignore[no-untyped-def]
    """Exposure, white balance, vignette, glare, tone curve and noise of one pixel."""
    du, dv = 2.0 * u / width - 1.0, 2.0 * v / height - 1.0
    falloff = 1.0 - light.vignette * (du * du + dv * dv) / 2.0
    distance = ((u - glare[0]) ** 2 + (v - glare[1]) ** 2) / (glare[2] * glare[2])
    veil = glare[3] * np.exp(-distance * distance)
    for c in range(3):
        value = max(rgb[c] * light.gain[c] * gain * falloff, 0.0)
        value = value * (1.0 - 0.55 * veil) + 1.6 * veil
        value = 255.0 * min(value, 1.0) ** light.gamma
        # The sum of three uniform numbers is close enough to a Gaussian; its standard deviation is 1/2.
        pixel = v * width + u
        draw = _hash(pixel, 3 * c, seed) + _hash(pixel, 3 * c + 1, seed) + _hash(pixel, 3 * c + 2, seed) - 1.5
        image[v, u, c] = np.uint8(min(max(value + 2.0 * light.noise * draw + 0.5, 0.0), 255.0))
