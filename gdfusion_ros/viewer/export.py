"""Shots as files: PNG pictures, one self-contained HTML page, a Rerun recording."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import Image
from gdfusion_ros.viewer.colors import COLOR_BY, ERRORS, GREY, legend, voxel_colors
from gdfusion_ros.viewer.picture import camera_rows, ego_box
from gdfusion_ros.viewer.shot import Shot, flow_arrows, path_in_ego, status_lines

Tell = Callable[[int], None]


def write_html(shots: Iterable[Shot], path: Path, seconds: float = 0.2, tell: Tell = lambda _: None) -> int:
    """Write one HTML file with the shots and all that is needed to look at them: no network, no server.

    It plays and steps, hides classes, cuts heights and colours as the page does. Each shot stays for ``seconds`` when
    playing. ``tell`` is called with each shot's number. Gives the number of shots.
    """
    packed: list[dict[str, Any]] = []
    track: list[npt.NDArray[np.float64]] = []
    first: Shot | None = None
    for shot in shots:
        first = first or shot
        track.append(shot.world_from_ego[:3, 3])
        packed.append(_packed(shot, np.array(track)))
        tell(len(packed) - 1)
    if first is None:
        raise UserError(f"nothing to write into {path}: there are no grids")
    errors = [GREY, *ERRORS.values()]
    content = {
        "grid": {
            "shape": first.grid.shape,
            "low": first.grid.minimum,
            "cell": first.grid.cell_size,
            "frame": first.grid.frame,
            "vehicle": [corner.tolist() for corner in ego_box(first.grid)],
        },
        "classes": [
            {"id": label.id, "name": label.name, "color": list(label.color)}
            for label in first.label_set.labels
            if label.id != first.label_set.free
        ],
        "colors": {"labels": first.label_set.palette().tolist(), "errors": errors, "unknown": GREY},
        # The classes stand beside their boxes.
        "legends": {by: legend(first.label_set, by) for by in COLOR_BY if by != "label"},
        "seconds": seconds,
        "shots": packed,
    }
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    # "</" would end the script element that the data stands in.
    data = json.dumps(content, allow_nan=False).replace("</", "<\\/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.replace(">DATA<", f">{data}<", 1), encoding="utf-8")
    return len(packed)


def _packed(shot: Shot, track: npt.NDArray[np.float64]) -> dict[str, Any]:
    """One shot for the HTML file; the arrays as page.html unpacks them."""
    count = len(shot.cells)
    nothing = np.zeros(count, dtype=np.uint8)
    errors = voxel_colors(shot, "error")
    codes = nothing.copy()
    for code, color in enumerate(ERRORS.values(), 1):
        codes[(errors == color).all(axis=1)] = code
    arrows = flow_arrows(shot)
    ahead, back = camera_rows(shot)
    arrays = (
        shot.cells.astype("<u2"),
        shot.labels,
        shot.predicted.astype(np.uint8),
        nothing if shot.confidence is None else shot.confidence,
        codes,
        voxel_colors(shot, "flow"),
        arrows.astype("<f4"),
    )
    data = zlib.compress(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays), 6)
    return {
        "voxels": count,
        "arrows": len(arrows),
        "hasConfidence": shot.confidence is not None,
        "data": base64.b64encode(data).decode("ascii"),
        "track": path_in_ego(track, shot.world_from_ego).astype(np.float32).ravel().round(2).tolist(),
        "status": "\n".join(status_lines(shot)),
        "pictures": {name: _jpeg(shot.pictures[name].image) for name in ahead + back},
    }


def _jpeg(image: Image) -> str:
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


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
