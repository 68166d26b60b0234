"""Label sets: the ids in a grid, and what each stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UNKNOWN = 255
"""The id of a voxel nobody knows anything about, in every label set."""


@dataclass(frozen=True)
class Label:
    """One class of voxels."""

    id: int
    name: str
    color: tuple[int, int, int]
    """RGB, 0..255."""
    movable: bool = False
    """Could move by itself (cars, people), whether or not it does now."""
    ground: bool = False
    """A surface that one drives or walks on."""
    autoware: int = 0
    """The id of autoware_perception_msgs/ObjectClassification: 0 UNKNOWN .. 7 PEDESTRIAN."""


@dataclass(frozen=True)
class LabelSet:
    """All classes of a data set, with the one that means free space."""

    name: str
    version: int
    free: int
    labels: tuple[Label, ...]

    def __getitem__(self, label_id: int) -> Label:
        for label in self.labels:
            if label.id == label_id:
                return label
        raise KeyError(f"label set {self.name} has no label {label_id}")

    def id(self, name: str) -> int:
        """The id of a class by its name; KeyError when there is none."""
        for label in self.labels:
            if label.name == name:
                return label.id
        raise KeyError(f"label set {self.name} has no label named {name!r}")

    @property
    def movable_ids(self) -> tuple[int, ...]:
        """Ids of the classes that can move."""
        return tuple(label.id for label in self.labels if label.movable)

    @property
    def ground_ids(self) -> tuple[int, ...]:
        """Ids of the classes one drives or walks on."""
        return tuple(label.id for label in self.labels if label.ground)

    def palette(self) -> npt.NDArray[np.uint8]:
        """RGB by id, (256, 3) uint8; ids that are not in the set are grey."""
        colors = np.full((256, 3), 128, dtype=np.uint8)
        for label in self.labels:
            colors[label.id] = label.color
        return colors

    def table(self, ids: Iterable[int]) -> npt.NDArray[np.bool_]:
        """A (256,) look-up table that is true at the given ids: ``table(movable_ids)[labels]`` is a mask."""
        mask = np.zeros(256, dtype=bool)
        mask[list(ids)] = True
        return mask


# Colours are those of nuScenes' lidarseg palette, which users of the data sets know.
_NUSCENES = {
    "others": Label(0, "others", (0, 0, 0)),
    "barrier": Label(1, "barrier", (112, 128, 144)),
    "bicycle": Label(2, "bicycle", (220, 20, 60), movable=True, autoware=6),
    "bus": Label(3, "bus", (255, 127, 80), movable=True, autoware=3),
    "car": Label(4, "car", (255, 158, 0), movable=True, autoware=1),
    "construction_vehicle": Label(5, "construction_vehicle", (233, 150, 70), movable=True, autoware=2),
    "motorcycle": Label(6, "motorcycle", (255, 61, 99), movable=True, autoware=5),
    "pedestrian": Label(7, "pedestrian", (0, 0, 230), movable=True, autoware=7),
    "traffic_cone": Label(8, "traffic_cone", (47, 79, 79)),
    "trailer": Label(9, "trailer", (255, 140, 0), movable=True, autoware=4),
    "truck": Label(10, "truck", (255, 99, 71), movable=True, autoware=2),
    "driveable_surface": Label(11, "driveable_surface", (0, 207, 191), ground=True),
    "other_flat": Label(12, "other_flat", (175, 0, 75), ground=True),
    "sidewalk": Label(13, "sidewalk", (75, 0, 75), ground=True),
    "terrain": Label(14, "terrain", (112, 180, 60), ground=True),
    "manmade": Label(15, "manmade", (222, 184, 135)),
    "vegetation": Label(16, "vegetation", (0, 175, 0)),
}


def _numbered(names: Iterable[str], first: int = 0) -> tuple[Label, ...]:
    return tuple(
        Label(i, name, base.color, base.movable, base.ground, base.autoware)
        for i, name in enumerate(names, first)
        for base in [_NUSCENES[name]]
    )


_FREE_COLOR = (255, 255, 255)

OCC3D = LabelSet("occ3d", 1, 17, (*_NUSCENES.values(), Label(17, "free", _FREE_COLOR)))
"""Occ3D-nuScenes: 0 others .. 16 vegetation, 17 free."""

OPENOCC = LabelSet(
    "openocc",
    2,
    16,
    (
        *_numbered(
            (
                "car",
                "truck",
                "trailer",
                "bus",
                "construction_vehicle",
                "bicycle",
                "motorcycle",
                "pedestrian",
                "traffic_cone",
                "barrier",
                "driveable_surface",
                "other_flat",
                "sidewalk",
                "terrain",
                "manmade",
                "vegetation",
            )
        ),
        Label(16, "free", _FREE_COLOR),
    ),
)
"""OpenOcc v2 (ALOcc-Flow): 0 car .. 15 vegetation, 16 free."""

SURROUNDOCC = LabelSet(
    "surroundocc", 1, 0, (Label(0, "free", _FREE_COLOR), *_numbered(tuple(_NUSCENES)[1:], 1))
)
"""SurroundOcc's and OpenOccupancy's own networks: 0 free, 1 barrier .. 16 vegetation."""

WAYMO = LabelSet(
    "occ3d-waymo",
    1,
    15,
    (
        Label(0, "general_object", (0, 0, 0)),
        Label(1, "vehicle", (255, 158, 0), movable=True, autoware=1),
        Label(2, "pedestrian", (0, 0, 230), movable=True, autoware=7),
        Label(3, "sign", (112, 128, 144)),
        Label(4, "cyclist", (220, 20, 60), movable=True, autoware=6),
        Label(5, "traffic_light", (47, 79, 79)),
        Label(6, "pole", (105, 105, 105)),
        Label(7, "construction_cone", (233, 150, 70)),
        Label(8, "bicycle", (255, 61, 99), movable=True, autoware=6),
        Label(9, "motorcycle", (255, 99, 71), movable=True, autoware=5),
        Label(10, "building", (222, 184, 135)),
        Label(11, "vegetation", (0, 175, 0)),
        Label(12, "tree_trunk", (135, 60, 0)),
        Label(13, "road", (0, 207, 191), ground=True),
        Label(14, "walkable", (75, 0, 75), ground=True),
        Label(15, "free", _FREE_COLOR),
    ),
)
"""Occ3D-Waymo: 0 general object .. 14 walkable, 15 free (23 in the data set's files)."""

LABEL_SETS = {label_set.name: label_set for label_set in (OCC3D, OPENOCC, SURROUNDOCC, WAYMO)}
