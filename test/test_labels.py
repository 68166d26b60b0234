"""Label sets: ids, names, and what they say about a class."""

from __future__ import annotations

import numpy as np
import pytest

from gdfusion_ros.labels import LABEL_SETS, OCC3D, OPENOCC, SURROUNDOCC, UNKNOWN


def test_occ3d_has_its_published_ids():
    assert [label.name for label in OCC3D.labels] == [
        *("others", "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian"),
        *("traffic_cone", "trailer", "truck", "driveable_surface", "other_flat", "sidewalk", "terrain"),
        *("manmade", "vegetation", "free"),
    ]
    assert OCC3D.free == 17


def test_openocc_counts_cars_from_zero_and_surroundocc_free_space():
    assert (OPENOCC.id("car"), OPENOCC.id("vegetation"), OPENOCC.free) == (0, 15, 16)
    assert (SURROUNDOCC.free, SURROUNDOCC.id("barrier"), SURROUNDOCC.id("vegetation")) == (0, 1, 16)


@pytest.mark.parametrize("label_set", LABEL_SETS.values(), ids=LABEL_SETS)
def test_the_ids_of_a_set_count_without_gaps_and_its_free_label_is_called_free(label_set):
    assert [label.id for label in label_set.labels] == list(range(len(label_set.labels)))
    assert label_set[label_set.free].name == "free"
    assert UNKNOWN not in [label.id for label in label_set.labels]


@pytest.mark.parametrize("label_set", [OCC3D, OPENOCC, SURROUNDOCC], ids=lambda label_set: label_set.name)
def test_a_class_of_nuscenes_keeps_its_colour_and_meaning_in_every_set(label_set):
    for label in label_set.labels:
        if label.name != "free":
            occ3d = OCC3D[OCC3D.id(label.name)]
            assert (label.color, label.movable, label.ground, label.autoware) == (
                *(occ3d.color, occ3d.movable, occ3d.ground, occ3d.autoware),
            )


def test_nothing_is_both_movable_and_ground():
    assert not set(OCC3D.movable_ids) & set(OCC3D.ground_ids)
    assert OCC3D.id("pedestrian") in OCC3D.movable_ids
    assert OCC3D.id("driveable_surface") in OCC3D.ground_ids


def test_the_palette_colours_every_id_and_leaves_strangers_grey():
    palette = OCC3D.palette()
    assert palette.shape == (256, 3)
    assert palette[OCC3D.id("car")].tolist() == [255, 158, 0]
    assert palette[UNKNOWN].tolist() == [128, 128, 128]


def test_a_table_turns_labels_into_a_mask():
    labels = np.array([[OCC3D.id("car"), OCC3D.free], [UNKNOWN, OCC3D.id("bus")]], dtype=np.uint8)
    assert OCC3D.table(OCC3D.movable_ids)[labels].tolist() == [[True, False], [False, True]]


def test_a_label_that_is_not_in_the_set_is_named_in_the_error():
    with pytest.raises(KeyError, match="no label named 'unicorn'"):
        OCC3D.id("unicorn")
    with pytest.raises(KeyError, match="no label 18"):
        OCC3D[18]
