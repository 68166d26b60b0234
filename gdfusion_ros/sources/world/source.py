"""WorldSource: a drive through a made-up city, as camera frames and exact ground truth."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdfusion_ros.frame import CameraFrame, CameraView, ImageTransform
from gdfusion_ros.geometry import Matrix, inverse
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.sources.world import city as city_module
from gdfusion_ros.sources.world.cast import cast_city, cast_parts
from gdfusion_ros.sources.world.ground_truth import (
    GroundTruth,
    label_grid,
    label_pixels,
    mark_rays,
    seen_in,
)
from gdfusion_ros.sources.world.layout import PERIOD, Layout
from gdfusion_ros.sources.world.lighting import (
    Weather,
    column_tops,
    lamp_light,
    random_weather,
    shadow_heights,
)
from gdfusion_ros.sources.world.objects import KINDS, PartTable
from gdfusion_ros.sources.world.rig import NUSCENES, Rig, RigCamera
from gdfusion_ros.sources.world.shade import shade
from gdfusion_ros.sources.world.traffic import Poses, Traffic, simulate

GRID = VoxelGrid.from_bounds((-40.0, 40.0, 0.8), (-40.0, 40.0, 0.8), (-1.2, 5.2, 0.8))
"""The default ground truth grid: Occ3D's extent in cells of 0.8 m, 0.2 m lower, so that the ground runs through the
middle of a layer: the vehicle's nodding moves it by 0.2 m at the grid's end."""
TRAINING_SEEDS = 1_000_000
"""Training draws its sequences from this seed on; smaller ones stay unseen."""
_BEGIN_NS = 1_700_000_000_000_000_000
_INTERVAL = 0.5
_DRAWN = 75.0
"""Metres within which objects are drawn."""
_REMEMBERED = 20
"""Frames that `hidden_seen_before` looks back."""


class _Exposure(NamedTuple):
    """One camera's picture, and what is known about its pixels; all (H, W) but the image's colours."""

    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]


class WorldSource:
    """A sequence of key frames at 2 Hz. Everything follows from the seed: the same arguments, the same bytes.

    Iterating gives CameraFrames; ``pairs`` gives them with their GroundTruth.
    """

    def __init__(
        self,
        seed: int = 0,
        frames: int = 20,
        rig: Rig = NUSCENES,
        image_size: tuple[int, int] = (96, 256),
        grid: VoxelGrid = GRID,
        weather: str | None = None,
        pose_noise: float = 0.0,
    ) -> None:
        """``image_size`` is (H, W) in pixels: images are drawn as if the camera's were scaled to W and cropped to
        their H bottom rows. ``pose_noise`` is the drift of the reported poses, in metres a frame (and a fifth as
        many degrees). Raises ValueError for sizes or weather that do not exist.
        """
        if frames < 1 or min(image_size) < 8:
            raise ValueError(f"a world of {frames} frames with images of {image_size} pixels cannot be drawn")
        if grid.frame != "ego":
            raise ValueError("the world's ground truth lies in the ego frame")
        self.seed = seed
        self.frames = frames
        self.rig = rig
        self.image_size = image_size
        self.grid = grid
        self.pose_noise = pose_noise
        layout_rng, city_rng, traffic_rng, weather_rng, self._pose_rng = (
            np.random.default_rng([seed, part]) for part in range(5)
        )
        layout = Layout.random(layout_rng)
        self._city = city_module.build(layout, city_rng)
        self._traffic: Traffic = simulate(layout, frames * _INTERVAL + 0.5, traffic_rng)
        self.weather: Weather = random_weather(weather_rng, weather)
        self._sway = weather_rng.uniform(0.0, 2 * np.pi, 4)
        self._parts = PartTable.of(self._traffic.things)
        self._visible: dict[int, npt.NDArray[np.bool_]] = {}

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[CameraFrame]:
        for index in range(self.frames):
            yield self._render(index)[0]

    def pairs(self) -> Iterator[tuple[CameraFrame, GroundTruth]]:
        """Every frame with its ground truth, in order."""
        for index in range(self.frames):
            frame, exposures = self._render(index)
            yield frame, self._truth(index, exposures)

    def ground_truth(self, index: int) -> GroundTruth:
        """The ground truth of one frame. Frames before it are drawn too, once: they decide what was seen before."""
        if not 0 <= index < self.frames:
            raise IndexError(f"the world has frames 0 to {self.frames - 1}, not {index}")
        for earlier in range(max(0, index - _REMEMBERED), index):
            if earlier not in self._visible:
                self._visible[earlier] = self._seen(earlier, self._render(earlier)[1])
        return self._truth(index, self._render(index)[1])

    def time(self, index: int) -> float:
        """Seconds from the first frame's anchor exposure to that of frame ``index``."""
        jitter = np.random.default_rng([self.seed, 5, index]).normal(0.0, 0.001)
        return index * _INTERVAL + (float(jitter) if index else 0.0)

    def true_pose(self, time: float) -> Matrix:
        """(4, 4) ``world_from_ego`` without pose noise, ``time`` seconds after the first frame."""
        (x, y), yaw = self._traffic.ego_at(time)
        # The body sways a little on its springs.
        pitch = 0.004 * np.sin(3.1 * time + self._sway[0]) + 0.002 * np.sin(7.9 * time + self._sway[1])
        roll = 0.003 * np.sin(2.3 * time + self._sway[2])
        c, s = np.cos(yaw), np.sin(yaw)
        pose = np.eye(4)
        pose[:3, :3] = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ np.array(
            [[1.0, 0.0, pitch], [0.0, 1.0, -roll], [-pitch, roll, 1.0]]
        )
        pose[:3, :3] = _orthonormal(pose[:3, :3])
        pose[:2, 3] = x, y
        return pose

    @cached_property
    def _pose_errors(self) -> list[Matrix]:
        errors, drift = [], np.zeros(3)
        for _ in range(self.frames):
            c, s = np.cos(drift[2]), np.sin(drift[2])
            error = np.eye(4)
            error[:2, :2] = [[c, -s], [s, c]]
            error[:2, 3] = drift[:2]
            errors.append(error)
            drift += self._pose_rng.normal(0.0, (1.0, 1.0, np.radians(0.2))) * self.pose_noise
        return errors

    @cached_property
    def _shadow(self) -> npt.NDArray[np.float32]:
        return shadow_heights(column_tops(self._city.columns), self.weather.light.sun)

    @cached_property
    def _lamps(self) -> npt.NDArray[np.float32]:
        return lamp_light(self._city)

    def _reported(self, index: int, time: float) -> Matrix:
        """The pose that localisation reports for an instant of frame ``index``."""
        pose = self.true_pose(time)
        if self.pose_noise:
            # The error turns about the true position: a drift of the heading must not throw the car far away.
            center = np.eye(4)
            center[:3, 3] = self.true_pose(self.time(index))[:3, 3]
            pose = center @ self._pose_errors[index] @ inverse(center) @ pose
        return pose

    def _render(self, index: int) -> tuple[CameraFrame, list[_Exposure]]:
        anchor_time = self.time(index)
        views: list[CameraView] = []
        exposures: list[_Exposure] = []
        for number, camera in enumerate(self.rig.cameras):
            time = anchor_time + camera.exposure_offset
            exposure = self._expose(camera, number, index, time)
            scale = self.image_size[1] / camera.width
            views.append(
                CameraView(
                    name=camera.name,
                    image=exposure.image,
                    intrinsics=camera.intrinsics,
                    ego_from_camera=camera.ego_from_camera,
                    world_from_ego=self._reported(index, time),
                    stamp_ns=_BEGIN_NS + round(time * 1e9),
                    image_transform=ImageTransform(scale, 0.0, self._top(camera)),
                )
            )
            exposures.append(exposure)
        frame = CameraFrame(
            stamp_ns=_BEGIN_NS + round(anchor_time * 1e9),
            views=tuple(views),
            world_from_ego=self._reported(index, anchor_time),
            scene=f"world-{self.seed}",
        )
        return frame, exposures

    def _top(self, camera: RigCamera) -> float:
        """Rows that are cropped from the top of the scaled image."""
        return float(round(camera.height * self.image_size[1] / camera.width) - self.image_size[0])

    def _rays(self, camera: RigCamera, world_from_camera: Matrix) -> npt.NDArray[np.float64]:
        """(H, W, 3) directions of the pixels in the world frame, of depth one.

        A pixel of the scaled image covers a square of the calibrated one; its ray goes through that square's middle.
        """
        height, width = self.image_size
        scale = width / camera.width
        u = (np.arange(width) + 0.5) / scale - 0.5
        v = (np.arange(height) + self._top(camera) + 0.5) / scale - 0.5
        k = camera.intrinsics
        rays = np.ones((height, width, 3))
        rays[..., 0] = ((u - k[0, 2]) / k[0, 0])[None, :]
        rays[..., 1] = ((v - k[1, 2]) / k[1, 1])[:, None]
        return rays @ world_from_camera[:3, :3].T

    def _expose(self, camera: RigCamera, number: int, index: int, time: float) -> _Exposure:
        height, width = self.image_size
        world_from_ego = self.true_pose(time)
        world_from_camera = world_from_ego @ camera.ego_from_camera
        shift = np.array([*(np.floor(world_from_ego[:2, 3] / PERIOD) * PERIOD), 0.0])
        origin = world_from_camera[:3, 3] - shift
        rays = self._rays(camera, world_from_camera)
        depth = np.empty((height, width), dtype=np.float32)
        what, face = np.empty((height, width), dtype=np.uint8), np.zeros((height, width), dtype=np.uint8)
        part = np.zeros((height, width), dtype=np.int32)
        cast_city(self._city.columns, origin, rays, depth, what, face)
        parts, shadows = self._place(self._traffic.at(time), world_from_ego, shift)
        scale = width / camera.width
        k = camera.intrinsics
        focal = np.array([k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5]) * scale
        focal[2:] -= 0.5, 0.5 + self._top(camera)
        cast_parts(
            *parts[:4],
            origin,
            inverse(world_from_camera)[:3, :3].copy(),
            focal,
            rays,
            depth,
            what,
            face,
            part,
        )
        image = np.empty((height, width, 3), dtype=np.uint8)
        rng = np.random.default_rng([self.seed, 6, index, number])
        glare = np.array(
            [rng.uniform(0, width), rng.uniform(0.1, 0.9) * height, rng.uniform(0.25, 0.8) * width, 0.0]
        )
        glare[3] = rng.uniform(0.6, 1.0) if rng.random() < self.weather.dazzle else 0.0
        gain = float(np.exp(rng.normal(0.0, 0.08)))
        forward = world_from_ego[:2, 0]
        ego = np.array([*(world_from_ego[:2, 3] - shift[:2]), *forward])
        city = self._city
        shade(
            image, depth, what, face, part, origin, rays, ego, city.ground, city.ground_color, city.style,
            city.style_texture, city.style_color, city.style_detail, self._shadow, self._lamps, self.weather.light,
            parts, shadows, gain, glare, int(rng.integers(2**31)),
        )  # fmt: skip
        labels = np.full((height, width), OCC3D.free, dtype=np.uint8)
        names = np.array([KINDS[thing.kind].label for thing in self._traffic.things], dtype=np.uint8)
        label_pixels(
            origin, rays, depth, what, face, part, names[parts[6]], city.style_label, city.style, city.ground,
            city_module.GROUND_CLASS, labels,
        )  # fmt: skip
        return _Exposure(image, depth, labels)

    def _place(self, poses: Poses, world_from_ego: Matrix, shift: npt.NDArray[np.float64]):  # type: ignore[no-untyped-def]
        """Parts near the ego and the shadows under their owners, in the torus's first period."""
        table = self._parts
        position = poses.position - world_from_ego[:2, 3]
        position -= PERIOD * np.round(position / PERIOD)
        near = np.hypot(position[:, 0], position[:, 1]) < _DRAWN
        position += world_from_ego[:2, 3] - shift[:2]
        chosen = np.flatnonzero(near[table.owner])
        owner = table.owner[chosen]
        cosine, sine = np.cos(poses.yaw), np.sin(poses.yaw)
        offset = table.center[chosen]
        center = offset.copy()
        center[:, 0] = position[owner, 0] + cosine[owner] * offset[:, 0] - sine[owner] * offset[:, 1]
        center[:, 1] = position[owner, 1] + sine[owner] * offset[:, 0] + cosine[owner] * offset[:, 1]
        parts = (
            center, cosine[owner], sine[owner], table.half[chosen], table.look[chosen], table.color[chosen], owner
        )  # fmt: skip
        close = np.flatnonzero(near)
        size = np.array([thing.size for thing in self._traffic.things])[close]
        shadows = np.column_stack(
            [position[close], cosine[close], sine[close], size[:, 0] / 2, size[:, 1] / 2]
        )
        return parts, shadows

    def _seen(self, index: int, exposures: list[_Exposure]) -> npt.NDArray[np.bool_]:
        visible = np.zeros(self.grid.shape, dtype=bool)
        cell, minimum = np.asarray(self.grid.cell_size), np.asarray(self.grid.minimum)
        ego_from_world = inverse(self.true_pose(self.time(index)))
        for camera, exposure in zip(self.rig.cameras, exposures, strict=True):
            world_from_camera = (
                self.true_pose(self.time(index) + camera.exposure_offset) @ camera.ego_from_camera
            )
            ego_from_camera = ego_from_world @ world_from_camera
            rays = self._rays(camera, ego_from_camera) / cell
            # Two rays for every cell at the grid's far end are enough.
            focal = camera.intrinsics[0, 0] / camera.width * self.image_size[1]
            stride = max(1, int(0.5 * cell.min() * focal / np.abs(self.grid.maximum[:2]).max()))
            mark_rays((ego_from_camera[:3, 3] - minimum) / cell, rays, exposure.depth, stride, visible)
        return visible

    def _truth(self, index: int, exposures: list[_Exposure]) -> GroundTruth:
        pose = self.true_pose(self.time(index))
        if index not in self._visible:
            self._visible[index] = self._seen(index, exposures)
        visible = self._visible[index]
        hidden = np.zeros_like(visible)
        ego_from_cell = np.diag([*self.grid.cell_size, 1.0])
        ego_from_cell[:3, 3] = self.grid.minimum
        for earlier in range(index - 1, max(-1, index - 1 - _REMEMBERED), -1):
            if earlier in self._visible:
                motion = inverse(self.true_pose(self.time(earlier))) @ pose
                cells = inverse(ego_from_cell) @ motion @ ego_from_cell
                seen_in(cells, self._visible[earlier], visible, hidden)
        labels, velocity = label_grid(
            self.grid, self._city, self._traffic.things, self._parts, self._traffic.at(self.time(index)), pose
        )
        return GroundTruth(
            self.grid,
            labels,
            velocity,
            visible,
            hidden,
            depth=tuple(exposure.depth for exposure in exposures),
            pixel_labels=tuple(exposure.labels for exposure in exposures),
            weather=self.weather.name,
        )


def _orthonormal(rotation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The rotation nearest to a matrix that is almost one."""
    u, _, vt = np.linalg.svd(rotation)
    return u @ vt
