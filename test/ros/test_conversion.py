"""Messages hold what the occupancy holds, in the byte orders that their definitions promise."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest

from gdfusion_ros.assembly.grids import occupancy_of
from gdfusion_ros.frame import Flow, FlowKind, Occupancy
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D, UNKNOWN
from gdfusion_ros.msg import SemanticOccupancy, VoxelFlow
from gdfusion_ros.ros.adaptors import autoware_points, flow_markers, obstacle_points, occupancy_grid
from gdfusion_ros.ros.conversion import flow_message, label_info_message, occupancy_message, points_message

GRID = VoxelGrid((-2.0, -1.0, -1.0), (0.5, 0.5, 1.0), (8, 4, 3))
CAR, ROAD, TREE, FREE = 4, 11, 16, 17


def occupancy(**changes) -> Occupancy:
    """Free space with a road below, a car at (6, 1, 1) and a tree at (7, 3, 2)."""
    labels = np.full(GRID.shape, FREE, np.uint8)
    labels[:, :, 0] = ROAD
    labels[6, 1, 1] = CAR
    labels[7, 3, 2] = TREE
    confidence = np.arange(GRID.cells, dtype=np.uint8).reshape(GRID.shape)
    vectors = np.zeros((*GRID.shape, 3), np.float32)
    vectors[6, 1, 1] = (-0.8, 0.1, 0.0)
    valid = np.ones(GRID.shape, bool)
    valid[7, 3, 2] = False
    flow = Flow(FlowKind.HISTORY_DISPLACEMENT, vectors, valid)
    made = Occupancy(
        labels, GRID, OCC3D, 5 * 10**9 + 7, 3, 2, ("A", "B", "C"), (True, False, True), "net", "random:1", np.eye(4),
        confidence, flow,
    )  # fmt: skip
    return replace(made, **changes)


def fields(message) -> dict[str, np.ndarray]:
    """A PointCloud2's columns, read by its own field table."""
    types = {7: "<f4", 6: "<u4", 2: "u1"}
    dtype = np.dtype(
        {
            "names": [field.name for field in message.fields],
            "formats": [types[field.datatype] for field in message.fields],
            "offsets": [field.offset for field in message.fields],
            "itemsize": message.point_step,
        }
    )
    assert len(message.data) == message.row_step == message.point_step * message.width
    points = np.frombuffer(message.data, dtype)
    return {name: points[name] for name in dtype.names}


@pytest.mark.parametrize("encoding", ["raw", "zlib"])
def test_a_voxel_is_where_the_index_formula_says(encoding):
    message = occupancy_message(occupancy(), "base_link", encoding)
    labels = zlib.decompress(bytes(message.labels)) if encoding == "zlib" else bytes(message.labels)
    assert len(labels) == 8 * 4 * 3
    assert labels[6 + message.size_x * (1 + message.size_y * 1)] == CAR
    assert labels[7 + message.size_x * (3 + message.size_y * 2)] == TREE
    assert labels.count(CAR) == labels.count(TREE) == 1
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (5, 7)
    assert message.header.frame_id == "base_link"
    assert (message.free_label, message.label_set, message.sequence, message.history_frames) == (
        17,
        "occ3d",
        3,
        2,
    )
    assert message.cameras_used == 0b101
    assert message.model_id == "net random:1"


@pytest.mark.parametrize("encoding", ["raw", "zlib"])
def test_a_message_becomes_the_same_occupancy_again(encoding):
    original = occupancy()
    flow = flow_message(original, original.flow, "base_link", "all")
    back = occupancy_of(occupancy_message(original, "base_link", encoding), flow_message=flow)
    assert np.array_equal(back.labels, original.labels)
    assert np.array_equal(back.confidence, original.confidence)
    assert back.grid == original.grid
    assert np.array_equal(back.flow.valid, original.flow.valid)
    assert np.array_equal(back.flow.vectors[back.flow.valid], original.flow.vectors[original.flow.valid])
    assert back.cameras_used == original.cameras_used


def test_confidence_is_left_empty_when_it_is_off_or_not_there():
    assert len(occupancy_message(occupancy(), "base_link", confidence=False).confidence) == 0
    assert len(occupancy_message(occupancy(confidence=None), "base_link").confidence) == 0


@pytest.mark.parametrize("cells", ["all", "occupied", "movable"])
def test_flow_lists_the_cells_that_have_a_vector_and_no_others(cells):
    made = occupancy()
    message = flow_message(made, made.flow, "base_link", cells)
    assert message.kind == VoxelFlow.HISTORY_DISPLACEMENT
    assert not message.dense
    indices = np.frombuffer(message.indices, np.uint32)
    assert (np.diff(indices.astype(int)) > 0).all()
    tree, car = 7 + 8 * (3 + 4 * 2), 6 + 8 * (1 + 4 * 1)
    assert tree not in indices
    assert len(indices) == {"all": 8 * 4 * 3 - 1, "occupied": 8 * 4 + 1, "movable": 1}[cells]
    at = int(np.flatnonzero(indices == car)[0])
    assert (message.vx[at], message.vy[at], message.vz[at]) == pytest.approx((-0.8, 0.1, 0.0))
    assert len(message.vx) == len(message.vy) == len(message.vz) == len(indices)


def test_a_flow_over_every_cell_is_dense_and_in_the_grids_order():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(*GRID.shape, 3)).astype(np.float32)
    flow = Flow(FlowKind.VELOCITY, vectors, np.ones(GRID.shape, bool))
    message = flow_message(occupancy(flow=flow), flow, "base_link", "all")
    assert message.dense
    assert len(message.indices) == 0
    assert message.kind == VoxelFlow.VELOCITY
    number = 5 + 8 * (2 + 4 * 1)
    assert (message.vx[number], message.vy[number], message.vz[number]) == tuple(vectors[5, 2, 1])


@pytest.mark.parametrize("cells", ["all", "occupied"])
def test_a_vector_that_is_not_finite_is_never_published(cells):
    vectors = np.zeros((*GRID.shape, 3), np.float32)
    vectors[6, 1, 1, 2], vectors[0, 0, 0, 0] = np.nan, np.inf
    flow = Flow(FlowKind.VELOCITY, vectors, np.ones(GRID.shape, bool))
    message = flow_message(occupancy(flow=flow), flow, "base_link", cells)
    assert not message.dense
    assert len(message.indices) == {"all": 8 * 4 * 3, "occupied": 8 * 4 + 2}[cells] - 2
    assert np.isfinite(np.array([message.vx, message.vy, message.vz])).all()


def test_points_are_the_occupied_cells_in_their_colours():
    columns = fields(points_message(occupancy(), "base_link"))
    assert len(columns["x"]) == 8 * 4 + 2
    car = int(np.flatnonzero(columns["label"] == CAR)[0])
    place = [columns[axis][car] for axis in "xyz"]
    assert place == pytest.approx([-2.0 + 6.5 * 0.5, -1.0 + 1.5 * 0.5, 0.5])
    assert columns["rgb"].view(np.uint32)[car] == (255 << 16) | (158 << 8)
    assert columns["confidence"][car] == occupancy().confidence[6, 1, 1]


def test_a_grid_of_nothing_gives_clouds_of_nothing():
    empty = occupancy(labels=np.full(GRID.shape, FREE, np.uint8))
    for message in (
        points_message(empty, "base_link"),
        autoware_points(empty, "base_link"),
        obstacle_points(empty, "base_link", (0.0, 2.0)),
    ):
        assert message.width == len(message.data) == message.row_step == 0
    assert len(flow_message(empty, empty.flow, "base_link").indices) == 0


def test_obstacle_points_leave_the_ground_and_the_sky_out():
    columns = fields(obstacle_points(occupancy(), "base_link", (0.0, 1.0)))
    assert list(columns) == ["x", "y", "z"]
    assert columns["z"].tolist() == [0.5]
    assert len(fields(obstacle_points(occupancy(), "base_link", (0.0, 2.0)))["x"]) == 2


def test_autoware_points_have_the_24_bytes_and_class_ids_of_point_xyzcpe():
    message = autoware_points(occupancy(), "base_link")
    assert message.point_step == 24
    assert [(field.name, field.offset, field.datatype) for field in message.fields] == [
        ("x", 0, 7), ("y", 4, 7), ("z", 8, 7), ("class_id", 12, 2), ("probability", 16, 7), ("entropy", 20, 7),
    ]  # fmt: skip
    columns = fields(message)
    # PointCloudClassification: 0 CAR, 8 FLAT_SURFACE, 10 VEGETATION.
    assert sorted(set(columns["class_id"].tolist())) == [0, 8, 10]
    car = int(np.flatnonzero(columns["class_id"] == 0)[0])
    assert columns["probability"][car] == pytest.approx(occupancy().confidence[6, 1, 1] / 255)


def test_an_occupancy_grid_keeps_unknown_apart_from_free():
    made = occupancy()
    labels = made.labels.copy()
    labels[0, 0, 1:] = UNKNOWN
    message = occupancy_grid(replace(made, labels=labels), "base_link", (0.0, 2.0))
    assert (message.info.width, message.info.height, message.info.resolution) == (8, 4, 0.5)
    assert (message.info.origin.position.x, message.info.origin.position.y) == (-2.0, -1.0)
    values = np.array(message.data).reshape(4, 8)
    assert values[1, 6] == values[3, 7] == 100
    assert values[0, 0] == -1
    assert values[2, 2] == 0
    assert np.count_nonzero(values == 100) == 2


def test_flow_markers_draw_a_line_from_where_a_cell_was_to_where_it_is():
    made = occupancy()
    (marker,) = flow_markers(made, made.flow, "base_link").markers
    begin, end = marker.points
    assert (end.x, end.y) == pytest.approx((1.25, -0.25))
    assert (begin.x, begin.y) == pytest.approx((0.45, -0.15))
    assert len(marker.colors) == 2
    still = Flow(FlowKind.VELOCITY, np.zeros((*GRID.shape, 3), np.float32), np.ones(GRID.shape, bool))
    assert flow_markers(made, still, "base_link").markers[0].action == 2  # DELETE


def test_label_info_names_every_label_once():
    message = label_info_message(OCC3D, occupancy_message(occupancy(), "").header.stamp)
    assert [label.id for label in message.labels] == list(range(18))
    assert message.labels[4].name == "car"
    assert message.labels[4].movable
    assert message.labels[11].ground
    assert message.unknown_label == SemanticOccupancy.UNKNOWN
