"""Shots as files: PNG pictures, one self-contained HTML page, a Rerun recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gdfusion_ros.errors import UserError
from gdfusion_ros.viewer.colors import voxel_colors
from gdfusion_ros.viewer.shot import Shot

if TYPE_CHECKING:
    from gdfusion_ros.viewer.page import Page

Tell = Callable[[int], None]


def write_html(
    shots: Iterable[Shot], page: Page, path: Path, seconds: float = 0.5, tell: Tell = lambda _: None
) -> int:
    """Write one HTML file that plays the shots in any browser, without network or server; gives their number.

    ``page`` is what they are drawn on: classes that are off there, its height cut and its colours hold in the file.
    Each shot stays for ``seconds``. ``tell`` is called with each shot's number.
    """
    recording = page.server.get_scene_serializer()
    count = 0
    for count, shot in enumerate(shots, 1):
        page.show(shot, count - 1)
        recording.insert_sleep(seconds)
        tell(count - 1)
    if not count:
        raise UserError(f"nothing to write into {path}: there are no grids")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(recording.as_html(dark_mode=True), encoding="utf-8")
    return count


def write_rerun(shots: Iterable[Shot], path: Path, tell: Tell = lambda _: None) -> int:
    """Write a Rerun recording (.rrd): voxels, flow, images, ego poses, times; gives the number of shots.

    Raises UserError when Rerun is not installed.
    """
    try:
        import rerun as rr
    except ImportError:
        raise UserError("--rerun needs rerun-sdk: pip install 'gdfusion_ros[rerun]'") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    stream: Any = rr.RecordingStream("gdfusion_ros")
    stream.save(str(path))
    stream.log("world", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    count = 0
    for count, shot in enumerate(shots, 1):
        stream.set_time("frame", sequence=count - 1)
        stream.set_time("stamp", timestamp=np.datetime64(shot.stamp_ns, "ns"))
        pose = shot.world_from_ego
        stream.log("world/ego", rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        shown = shot.predicted
        stream.log(
            "world/ego/voxels",
            rr.Boxes3D(
                centers=shot.centers()[shown],
                half_sizes=np.tile(np.asarray(shot.grid.cell_size) / 2, (int(shown.sum()), 1)),
                colors=voxel_colors(shot)[shown],
                fill_mode="solid",
            ),
        )
        if shot.vectors is not None and shot.vectors_valid is not None:
            moving = shot.vectors_valid & (np.linalg.norm(shot.vectors.astype(np.float32), axis=1) > 0.5)
            arrows = rr.Arrows3D(
                origins=shot.centers()[moving],
                vectors=shot.vectors[moving].astype(np.float32),
                colors=(255, 255, 255),
            )
            stream.log("world/ego/flow", arrows)
        for name, picture in shot.pictures.items():
            stream.log(f"cameras/{name}", rr.Image(picture.image).compress(jpeg_quality=80))
        tell(count - 1)
    stream.flush()
    if not count:
        raise UserError(f"nothing to write into {path}: there are no grids")
    return count
