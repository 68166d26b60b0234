"""Pictures of a grid without a browser or a display: ray-cast voxels with shadows, and a sheet with the cameras."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from gdfusion_ros.frame import CameraFrame, Image, Occupancy
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.rays import first_hits
from gdfusion_ros.viewer.colors import ERRORS, ColorBy, legend, voxel_colors
from gdfusion_ros.viewer.shot import Shot, make_shot, true_shot

Array = npt.NDArray[np.float64]

SKY = ((66, 74, 88), (150, 160, 172))
"""Background colours, top and bottom."""
SUN = np.array([-0.35, 0.45, 0.82])
"""Direction towards the light, in ego axes."""
SHADOW = 0.62
FACES = np.array([[0.78, 0.86], [0.90, 0.72], [0.55, 1.0]])
"""Brightness of a cell's faces: axis (x, y, z) by side (minimum, maximum)."""
EGO = ((-1.0, -0.95, 0.0), (3.6, 0.95, 1.5))
"""A car's box around the ego frame's origin, in metres, drawn to show where the vehicle is."""
EGO_COLOR = (235, 235, 240)


@dataclass(frozen=True)
class Viewpoint:
    """Where the picture is taken from: ego axes (x forward, y left, z up), metres."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    field_of_view: float
    """Vertical, in degrees."""


BEHIND = Viewpoint((-36.0, 0.0, 30.0), (6.0, 0.0, 0.0), 48.0)
"""From behind and above, as one looks over a driver's shoulder from a drone."""
ABOVE = Viewpoint((-0.1, 0.0, 110.0), (0.0, 0.0, 0.0), 42.0)
"""Straight down, forward is up."""


def render_occupancy(
    occupancy: Occupancy,
    size: tuple[int, int] = (1280, 720),
    viewpoint: Viewpoint = BEHIND,
    color_by: ColorBy = "label",
    truth: npt.NDArray[np.uint8] | None = None,
) -> Image:
    """The grid's occupied voxels as an RGB picture (height, width, 3) of ``size`` (width, height).

    ``truth`` (X, Y, Z) is for ``color_by="error"``, which also draws what was missed.
    """
    return render(make_shot(occupancy, truth=truth), size, viewpoint, color_by)


def render(
    shot: Shot,
    size: tuple[int, int] = (1280, 720),
    viewpoint: Viewpoint = BEHIND,
    color_by: ColorBy = "label",
) -> Image:
    """A shot's voxels as an RGB picture (height, width, 3) of ``size`` (width, height)."""
    width, height = size
    grid = shot.grid
    shown = np.ones(len(shot.cells), dtype=bool) if color_by == "error" else shot.predicted
    drawn = tuple(shot.cells[shown].T)
    paint = np.empty((*grid.shape, 3), dtype=np.uint8)
    solid = _ego_cells(grid)
    paint[solid] = EGO_COLOR
    solid[drawn] = True
    paint[drawn] = voxel_colors(shot, color_by)[shown]
    position, rays = _pixel_rays(grid, size, viewpoint)
    hits = first_hits(solid, grid, np.broadcast_to(position, rays.shape), rays)

    share = np.linspace(0, 1, height)[:, None, None]
    picture = np.broadcast_to((1 - share) * SKY[0] + share * SKY[1], (height, width, 3)).reshape(-1, 3).copy()
    seen = hits.hit
    cells, depth = hits.cell[seen].astype(np.int64), hits.depth[seen]
    point = position + rays[seen] * depth[:, None]
    # Black (Occ3D's "others") would hide every edge.
    colors = np.maximum(paint[tuple(cells.T)].astype(np.float64), 28.0)

    local = (point - np.asarray(grid.minimum)) / np.asarray(grid.cell_size) - cells
    axis, side = _face(local, rays[seen])
    light = FACES[axis, side]
    light *= _outline(local, axis, depth, height, viewpoint, grid.cell_size[0])
    light *= _shadow(solid, grid, point, axis, side)
    far = depth - np.linalg.norm(np.subtract(viewpoint.target, viewpoint.position))
    haze = np.clip((far - 10.0) / 160.0, 0.0, 0.5)[:, None]
    picture[seen] = (1 - haze) * colors * light[:, None] + haze * np.array(SKY[1])
    return picture.clip(0, 255).astype(np.uint8).reshape(height, width, 3)


def sheet(
    frame: CameraFrame,
    occupancy: Occupancy,
    width: int = 1440,
    truth: npt.NDArray[np.uint8] | None = None,
    color_by: ColorBy = "label",
    title: str = "",
) -> Image:
    """One RGB picture that explains itself: cameras that look ahead, the grid, cameras that look back, a legend.

    With ``truth`` (X, Y, Z), ground truth and the errors stand beside the prediction. ``title`` stands above the
    legend.
    """
    return shot_sheet(make_shot(occupancy, frame, truth), width, color_by, title)


def shot_sheet(shot: Shot, width: int = 1440, color_by: ColorBy = "label", title: str = "") -> Image:
    """The same sheet of a shot."""
    ahead, back = camera_rows(shot)
    parts = [_strip(shot, ahead, width)] if ahead else []
    if shot.truth is None:
        parts.append(render(shot, (width, width * 9 // 16), color_by=color_by))
    else:
        third = (width // 3, width * 3 // 8)
        panels = [
            write_on(render(shot, third, color_by=color_by), "prediction"),
            write_on(render(true_shot(shot), third), "ground truth"),
            write_on(render(shot, third, color_by="error"), "errors"),
        ]
        parts.append(np.hstack(panels))
    if back:
        parts.append(_strip(shot, back, width))
    parts.append(_legend(shot, width, color_by, title))
    widest = max(part.shape[1] for part in parts)
    return np.vstack([_padded(part, widest) for part in parts])


def write_on(picture: Image, text: str) -> Image:
    """The picture with a line of text in its upper left corner."""
    image = PillowImage.fromarray(picture)
    draw = ImageDraw.Draw(image)
    box = draw.textbbox((8, 6), text, font=_font(18))
    draw.rectangle((0, 0, box[2] + 8, box[3] + 6), fill=(20, 22, 26))
    draw.text((8, 6), text, font=_font(18), fill=(240, 240, 240))
    return np.asarray(image)


def save_png(picture: Image, path: Path) -> None:
    """Write an RGB picture; the folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(picture).save(path)


def _grid_from_ego(grid: VoxelGrid) -> Array:
    """Rotation into the grid's axes. LiDAR axes are x right, y forward; their small tilt does not show in a picture."""
    if grid.frame == "ego":
        return np.eye(3)
    return np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def _pixel_rays(grid: VoxelGrid, size: tuple[int, int], viewpoint: Viewpoint) -> tuple[Array, Array]:
    """The eye (3,) and unit directions (height * width, 3) in the grid's axes."""
    width, height = size
    forward = np.subtract(viewpoint.target, viewpoint.position)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    half = np.tan(np.radians(viewpoint.field_of_view) / 2)
    v = -(np.arange(height) + 0.5 - height / 2) / (height / 2) * half
    u = (np.arange(width) + 0.5 - width / 2) / (height / 2) * half
    rays = forward + u[None, :, None] * right + v[:, None, None] * up
    rays = rays.reshape(-1, 3) @ _grid_from_ego(grid).T
    return _grid_from_ego(grid) @ np.asarray(viewpoint.position), rays / np.linalg.norm(
        rays, axis=1, keepdims=True
    )


def ego_box(grid: VoxelGrid) -> tuple[Array, Array]:
    """Lowest and highest corner (3,) of the vehicle's box in the grid's frame, metres."""
    corners = np.array(EGO) @ _grid_from_ego(grid).T
    if grid.frame == "lidar":
        corners[:, 2] -= 1.84  # the LiDAR's height on nuScenes' cars
    return corners.min(axis=0), corners.max(axis=0)


def _ego_cells(grid: VoxelGrid) -> npt.NDArray[np.bool_]:
    low, high = ego_box(grid)
    first = np.floor((low - grid.minimum) / grid.cell_size + 0.5).astype(int).clip(0)
    last = np.floor((high - grid.minimum) / grid.cell_size + 0.5).astype(int).clip(0)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[first[0] : last[0], first[1] : last[1], first[2] : last[2]] = True
    return mask


def _face(local: Array, rays: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Axis and side of the face that a ray entered a cell by; ``local`` is the entry point in cell units."""
    # The entry face is the one whose plane the point lies on, of those that look towards the ray.
    side = (rays < 0).astype(np.int64)
    distance = np.abs(local - side)
    axis = distance.argmin(axis=1)
    return axis, np.take_along_axis(side, axis[:, None], axis=1)[:, 0]


def _outline(
    local: Array, axis: npt.NDArray[np.int64], depth: Array, height: int, viewpoint: Viewpoint, cell: float
) -> Array:
    """Darker near a face's edges, where cells are large enough on screen for that to help."""
    pixels = cell * height / (2 * depth * np.tan(np.radians(viewpoint.field_of_view) / 2))
    edge = np.minimum(local, 1.0 - local)
    np.put_along_axis(edge, axis[:, None], 1.0, axis=1)
    strength = 0.22 * np.clip((pixels - 3.0) / 6.0, 0.0, 1.0)
    return 1.0 - strength * (edge.min(axis=1) * pixels < 0.8)


def _shadow(
    solid: npt.NDArray[np.bool_],
    grid: VoxelGrid,
    point: Array,
    axis: npt.NDArray[np.int64],
    side: npt.NDArray[np.int64],
) -> Array:
    sun = _grid_from_ego(grid) @ (SUN / np.linalg.norm(SUN))
    start = point.copy()
    rows = np.arange(len(point))
    start[rows, axis] += (2 * side - 1) * 1e-3
    away = (2 * side - 1) * sun[axis] <= 0
    blocked = first_hits(solid, grid, start, np.broadcast_to(sun, start.shape)).hit
    return np.where(blocked | away, SHADOW, 1.0)


def camera_rows(shot: Shot) -> tuple[list[str], list[str]]:
    """Cameras that look ahead and cameras that look back, each row from the vehicle's left to its right.

    Cameras of unknown place are halved in the order they have.
    """
    yaw = {}
    unplaced = [name for name, picture in shot.pictures.items() if picture.ego_from_camera is None]
    for name, picture in shot.pictures.items():
        if picture.ego_from_camera is not None:
            yaw[name] = float(np.arctan2(picture.ego_from_camera[1, 2], picture.ego_from_camera[0, 2]))
    ahead = sorted((name for name in yaw if abs(yaw[name]) <= np.pi / 2), key=lambda name: -yaw[name])
    back = sorted(
        (name for name in yaw if abs(yaw[name]) > np.pi / 2), key=lambda name: yaw[name] % (2 * np.pi)
    )
    half = -(-len(unplaced) // 2)
    return ahead + unplaced[:half], back + unplaced[half:]


def _strip(shot: Shot, names: Sequence[str], width: int) -> Image:
    """The cameras' pictures side by side over the whole width, up to three to the full height of a third."""
    columns = max(len(names), 3)
    tile = width // columns
    tiles = []
    for name in names:
        image = shot.pictures[name].image
        height = max(1, round(image.shape[0] * tile / image.shape[1]))
        tiles.append(write_on(cv2.resize(image, (tile, height), interpolation=cv2.INTER_AREA), name))
    tallest = max(picture.shape[0] for picture in tiles)
    strip = np.full((tallest, width, 3), 20, dtype=np.uint8)
    left = (width - tile * len(tiles)) // 2
    for k, picture in enumerate(tiles):
        strip[: picture.shape[0], left + k * tile : left + (k + 1) * tile] = picture
    return strip


def _legend(shot: Shot, width: int, color_by: ColorBy, title: str) -> Image:
    """What the colours mean and what the grid is."""
    entries = list(legend(shot.label_set, color_by).items())
    if shot.truth is not None and color_by != "label":
        entries += legend(shot.label_set).items()  # the ground truth's
    if shot.truth is not None and color_by != "error":
        entries += [(f"error: {name}", color) for name, color in ERRORS.items()]
    columns = max(1, width // 180)
    rows = -(-len(entries) // columns)
    words = (
        f"{shot.model}  |  weights {shot.weights}  |  sequence {shot.sequence}, "
        f"{shot.history_frames} frames of history  |  {shot.stamp_ns * 1e-9:.3f} s"
    )
    lines = [title] * bool(title) + textwrap.wrap(words, max(20, width // 8))
    image = PillowImage.new("RGB", (width, 22 * (rows + len(lines)) + 14), (20, 22, 26))
    draw = ImageDraw.Draw(image)
    for k, line in enumerate(lines):
        draw.text((10, 6 + 22 * k), line, font=_font(14), fill=(230, 230, 230))
    for k, (name, color) in enumerate(entries):
        left, top = 10 + (k % columns) * 180, 8 + 22 * (len(lines) + k // columns)
        draw.rectangle((left, top + 2, left + 14, top + 16), fill=color, outline=(160, 160, 160))
        draw.text((left + 20, top), name, font=_font(14), fill=(230, 230, 230))
    return np.asarray(image)


def _padded(picture: Image, width: int) -> Image:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=20)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
