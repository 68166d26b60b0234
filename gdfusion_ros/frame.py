"""The two nouns that everybody exchanges: CameraFrame goes into a stream, Occupancy comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from gdfusion_ros.geometry import Matrix
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import LabelSet

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageTransform:
    """How the pixels at hand came from the calibrated image: ``pixel = scale * calibrated_pixel - (left, top)``."""

    scale: float = 1.0
    left: float = 0.0
    top: float = 0.0


@dataclass(frozen=True)
class CameraView:
    """One camera's image with everything that places it in the world at its own exposure."""

    name: str
    """The camera's name, such as CAM_FRONT."""
    image: Image
    """(H, W, 3) uint8, RGB."""
    intrinsics: Matrix
    """(3, 3) pinhole matrix of the calibrated image, before ``image_transform``, in pixels."""
    ego_from_camera: Matrix
    """(4, 4) extrinsics: optical frame (x right, y down, z forward) to ego frame, in metres."""
    world_from_ego: Matrix
    """(4, 4) ego pose at this camera's exposure, in a fixed frame (odom or map)."""
    stamp_ns: int
    """Time of exposure in nanoseconds."""
    image_transform: ImageTransform = ImageTransform()
    """Identity for images as the camera gave them; sources that resized and cropped early say so here."""
    encoded: bytes | None = None
    """The JPEG or PNG that ``image`` was decoded from, where the source has it: recordings keep it untouched."""
    missing: bool = False
    """The camera gave no image in time; ``image`` is black and stands for nothing."""


@dataclass(frozen=True)
class CameraFrame:
    """The images of all cameras around one instant, the input of one step."""

    stamp_ns: int
    """Exposure time of the anchor camera: the time that the grid is valid for."""
    views: tuple[CameraView, ...]
    """In the order that the source knows them; networks look cameras up by name."""
    world_from_ego: Matrix
    """(4, 4) ego pose at ``stamp_ns``: the current grid lies in this ego frame."""
    world_from_ego_at_lidar: Matrix | None = None
    """(4, 4) ego pose at the LiDAR sweep that belongs to the frame, where the data set has one. The published
    networks warp their history between these poses (a constant offset of some 40 ms to the anchor's)."""
    ego_from_lidar: Matrix | None = None
    """(4, 4) LiDAR extrinsics, for grids that lie in the LiDAR frame."""
    lidar_points: npt.NDArray[np.float32] | None = None
    """(N, 3) points in the LiDAR frame, for networks that take LiDAR depth and for evaluation."""
    scene: str = ""
    """The recording this frame comes from. Two frames of different scenes never share history."""
    restart_reason: str | None = None
    """Why history must start anew here, where the source knows: a frame before this one had to be skipped, say."""

    def view(self, name: str) -> CameraView:
        """The view of the camera with this name; KeyError names the cameras there are."""
        for view in self.views:
            if view.name == name:
                return view
        raise KeyError(f"the frame has no camera {name}; it has {', '.join(v.name for v in self.views)}")


class FlowKind(Enum):
    """What the vectors of a Flow mean."""

    HISTORY_DISPLACEMENT = 0
    """Metres from a voxel to where its history was sampled, ego motion taken out (GDFusion's M times cell size)."""
    VELOCITY = 1
    """Metres per second over ground in the grid's axes, from a network with a supervised flow head."""


@dataclass(frozen=True)
class Flow:
    """A vector per voxel."""

    kind: FlowKind
    vectors: npt.NDArray[np.float32]
    """(X, Y, Z, 3), finite where ``valid``."""
    valid: npt.NDArray[np.bool_]
    """(X, Y, Z): where the vector says something. Elsewhere nothing is known, which is not the same as zero."""


@dataclass(frozen=True)
class Occupancy:
    """What one step gives: a semantic voxel grid, valid at the anchor's exposure in the ego frame of that instant."""

    labels: npt.NDArray[np.uint8]
    """(X, Y, Z) ids of ``label_set``; 255 is unknown."""
    grid: VoxelGrid
    label_set: LabelSet
    stamp_ns: int
    sequence: int
    """Number of the sequence since the stream began, from 1; it grows whenever history starts anew."""
    history_frames: int
    """Frames of this sequence before this one."""
    cameras: tuple[str, ...]
    """The network's cameras, in its order."""
    cameras_used: tuple[bool, ...]
    """For each of ``cameras``, whether it gave an image."""
    model: str
    weights: str
    """What the weights are: a file's name and sha256, or ``random:SEED``."""
    world_from_ego: Matrix
    confidence: npt.NDArray[np.uint8] | None = None
    """(X, Y, Z): the winning class's probability, 255 = 1."""
    flow: Flow | None = None
    state_bytes: int = 0
    """Bytes of temporal state handed on to the next frame."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds by stage."""
