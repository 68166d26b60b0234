"""Occupancies in the forms that other stacks read: Nav2, Autoware, RViz. Each is made only while somebody listens."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Pose, Quaternion
from nav_msgs.msg import MapMetaData, OccupancyGrid
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from gdfusion_ros.frame import Flow, FlowKind, Occupancy
from gdfusion_ros.labels import UNKNOWN, LabelSet
from gdfusion_ros.ros.conversion import XYZ, centers, cloud, header, occupied, signed_byte_array

FREE, OCCUPIED, NOT_KNOWN = 0, 100, -1
"""Values of nav_msgs/OccupancyGrid."""

# autoware's PointCloudClassification, which PointXYZCPE::class_id holds (autoware_point_types): 0 CAR, 1 TRUCK, 2 BUS,
# 3 MOTORCYCLE, 4 BICYCLE, 5 PEDESTRIAN, 6 ANIMAL, 7 HAZARD, 8 FLAT_SURFACE, 9 STRUCTURE, 10 VEGETATION, 11 NOISE. Its
# numbers are not those of ObjectClassification (Label.autoware), which knows no surfaces.
_POINT_CLASSES = {
    "others": 7,
    "barrier": 9,
    "bicycle": 4,
    "bus": 2,
    "car": 0,
    "construction_vehicle": 1,
    "motorcycle": 3,
    "pedestrian": 5,
    "traffic_cone": 7,
    "trailer": 1,
    "truck": 1,
    "driveable_surface": 8,
    "other_flat": 8,
    "sidewalk": 8,
    "terrain": 8,
    "manmade": 9,
    "vegetation": 10,
}
_INVALID_CLASS = 255

XYZCPE = np.dtype(
    {
        "names": ["x", "y", "z", "class_id", "probability", "entropy"],
        "formats": ["<f4", "<f4", "<f4", "u1", "<f4", "<f4"],
        "offsets": [0, 4, 8, 12, 16, 20],
        "itemsize": 24,
    }
)
"""autoware::point_types::PointXYZCPE."""


def obstacle_points(occupancy: Occupancy, frame: str, band: tuple[float, float]) -> PointCloud2:
    """Centres of the occupied cells that are no ground, within ``band`` (metres above the frame's origin).

    For Nav2's voxel and obstacle layers and Autoware's obstacle segmentation.
    """
    cells = np.flatnonzero(_obstacles(occupancy) & _in_band(occupancy, band))
    data, _ = centers(cells, occupancy.grid, XYZ)
    return cloud(data, XYZ, occupancy, frame)


def autoware_points(occupancy: Occupancy, frame: str) -> PointCloud2:
    """Centres of the occupied cells as Autoware's PointXYZCPE, 24 bytes each.

    ``probability`` is the network's confidence, 1 where it gives none. ``entropy`` is NaN, Autoware's own word for
    "not known", as only the winning class's probability is kept.
    """
    cells = np.flatnonzero(occupied(occupancy))
    data, points = centers(cells, occupancy.grid, XYZCPE)
    points["class_id"] = _point_classes(occupancy.label_set)[occupancy.labels.ravel()[cells]]
    points["probability"] = (
        1.0 if occupancy.confidence is None else occupancy.confidence.ravel()[cells] / np.float32(255)
    )
    points["entropy"] = np.nan
    return cloud(data, XYZCPE, occupancy, frame)


def occupancy_grid(occupancy: Occupancy, frame: str, band: tuple[float, float]) -> OccupancyGrid:
    """The grid seen from above: 100 where an obstacle stands within ``band``, 0 where all known cells are free of it,
    -1 where nothing of the band is known.

    Raises ValueError when cells are not square.
    """
    grid = occupancy.grid
    if grid.cell_size[0] != grid.cell_size[1]:
        raise ValueError(
            f"an OccupancyGrid has square cells, not {grid.cell_size[0]} x {grid.cell_size[1]} m"
        )
    inside = _in_band(occupancy, band)
    obstacle = (_obstacles(occupancy) & inside).any(axis=2)
    known = ((occupancy.labels != UNKNOWN) & inside).any(axis=2)
    values = np.where(obstacle, OCCUPIED, np.where(known, FREE, NOT_KNOWN)).astype(np.int8)
    info = MapMetaData(resolution=float(grid.cell_size[0]), width=grid.shape[0], height=grid.shape[1])
    info.map_load_time = header(occupancy, frame).stamp
    info.origin = Pose(
        position=Point(x=grid.minimum[0], y=grid.minimum[1], z=0.0), orientation=Quaternion(w=1.0)
    )
    return OccupancyGrid(header=header(occupancy, frame), info=info, data=signed_byte_array(values.T))


MAX_ARROWS = 5000
MIN_FLOW = 0.2
"""Metres: shorter vectors are the network's noise, and would hide the others."""
VELOCITY_SECONDS = 0.5
"""A velocity is drawn as the way of half a second."""


def flow_markers(occupancy: Occupancy, flow: Flow, frame: str) -> MarkerArray:
    """Lines along the motion of occupied cells: from where it was to where it is, or to where it will be by VELOCITY.

    A line is dark where the motion begins and has the label's colour where it ends.
    """
    moving = occupied(occupancy) & flow.valid
    cells = np.flatnonzero(moving)
    vectors = flow.vectors.reshape(-1, 3)[cells]
    if flow.kind is FlowKind.VELOCITY:
        vectors = vectors * VELOCITY_SECONDS
    lengths = np.linalg.norm(vectors, axis=1)
    chosen = np.flatnonzero(lengths >= MIN_FLOW)
    if len(chosen) > MAX_ARROWS:
        chosen = np.sort(chosen[np.argpartition(-lengths[chosen], MAX_ARROWS)[:MAX_ARROWS]])
    cells, vectors = cells[chosen], vectors[chosen]
    _, points = centers(cells, occupancy.grid, XYZ)
    here = np.stack([points["x"], points["y"], points["z"]], axis=1)
    there = here + vectors
    begins, ends = (here, there) if flow.kind is FlowKind.VELOCITY else (there, here)
    colors = occupancy.label_set.palette()[occupancy.labels.ravel()[cells]] / 255.0
    marker = Marker(
        header=header(occupancy, frame), ns="flow", id=0, type=Marker.LINE_LIST, action=Marker.ADD
    )
    marker.pose.orientation.w = 1.0
    marker.scale.x = 0.08
    marker.lifetime = Duration(sec=1)
    dark = ColorRGBA(r=0.15, g=0.15, b=0.15, a=0.6)
    for begin, end, color in zip(begins.tolist(), ends.tolist(), colors.tolist(), strict=True):
        marker.points += [_point(begin), _point(end)]
        marker.colors += [dark, ColorRGBA(r=color[0], g=color[1], b=color[2], a=1.0)]
    if not len(cells):
        marker.action = Marker.DELETE
    return MarkerArray(markers=[marker])


def vision_label_info(label_set: LabelSet) -> Any | None:
    """The labels as vision_msgs/LabelInfo, where that package is installed."""
    try:
        from vision_msgs.msg import LabelInfo, VisionClass
    except ImportError:
        return None
    classes = [VisionClass(class_id=label.id, class_name=label.name) for label in label_set.labels]
    return LabelInfo(class_map=classes, threshold=0.0)


def _point(xyz: list[float]) -> Point:
    return Point(x=xyz[0], y=xyz[1], z=xyz[2])


def _obstacles(occupancy: Occupancy) -> npt.NDArray[np.bool_]:
    """(X, Y, Z): occupied, and not a surface that one drives or walks on."""
    ground = occupancy.label_set.table(occupancy.label_set.ground_ids)
    return occupied(occupancy) & ~ground[occupancy.labels]


def _in_band(occupancy: Occupancy, band: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """(1, 1, Z): layers whose centre lies within the band."""
    grid = occupancy.grid
    heights = grid.minimum[2] + (np.arange(grid.shape[2]) + 0.5) * grid.cell_size[2]
    return ((heights >= band[0]) & (heights <= band[1]))[None, None]


def _point_classes(label_set: LabelSet) -> npt.NDArray[np.uint8]:
    table = np.full(256, _INVALID_CLASS, dtype=np.uint8)
    for label in label_set.labels:
        table[label.id] = _POINT_CLASSES.get(label.name, _INVALID_CLASS)
    return table
