"""The page in the browser: one scene, redrawn for each shot, and the controls that choose what of it is shown."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import viser

from gdfusion_ros.errors import UserError
from gdfusion_ros.geometry import quaternion
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import LabelSet
from gdfusion_ros.viewer.colors import COLOR_BY, ColorBy, Colors, legend, voxel_colors
from gdfusion_ros.viewer.picture import EGO_COLOR, camera_rows, ego_box
from gdfusion_ros.viewer.shot import Shot, flow_arrows, path_in_ego, status_lines
from gdfusion_ros.viewer.voxels import Choice, box, chosen, split_by_shape, square

NAMES: dict[ColorBy, str] = {
    "label": "label",
    "confidence": "confidence",
    "flow": "flow",
    "error": "error against ground truth",
}
FILLED = 0.97
"""How much of its cell's edge a voxel is drawn with: the gap shows where one ends."""
IMAGES_WIDTH = 225
"""Pixels of the panel with the images: narrow, so that most of six of 16:9 fit below each other."""


@dataclass
class Track:
    """Where the vehicle has been, by the number of the shot."""

    positions: dict[int, np.ndarray] = field(default_factory=dict)

    def before(self, shot: Shot, number: int) -> np.ndarray:
        """(N, 3) positions up to a shot, in its ego frame, a little above the ground."""
        self.positions[number] = shot.world_from_ego[:3, 3]
        path = np.array([self.positions[k] for k in sorted(self.positions) if k <= number])
        return path_in_ego(path, shot.world_from_ego)


class Page:
    """A viser server with a scene and controls. ``show`` may be called from any thread."""

    def __init__(self, host: str = "127.0.0.1", port: int = 8080) -> None:
        """Begin to serve; port 0 is any free one. Raises UserError when the port cannot be had."""
        self.server = viser.ViserServer(host=host, port=_free_port(host, port), verbose=False)
        self._lock = threading.RLock()
        self._shot: Shot | None = None
        self._number = 0
        self._track = Track()
        self._classes: dict[int, Any] = {}
        self._label_set: LabelSet | None = None
        self._grid: VoxelGrid | None = None
        self._drawn: dict[str, Any] = {}
        self._pictures: dict[str, Any] = {}
        self._picture_tab: Any = None
        self.updates = 0
        """How many times the scene was drawn."""
        self._build()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{self.server.get_host()}:{self.server.get_port()}"

    def _build(self) -> None:
        gui, scene = self.server.gui, self.server.scene
        gui.configure_theme(show_logo=False, show_share_button=False, dark_mode=True)
        gui.main_panel.dock_right()
        gui.set_panel_label("gdfusion")
        scene.set_up_direction("+z")
        # Plain lamps instead of viser's photographed surroundings: colours that mean something must look like
        # themselves, and software renderers (a laptop over SSH, CI) take a fraction of the time.
        scene.configure_environment_map(None)
        scene.configure_default_lights(False)
        # About 0.8 pi on an upper face: at pi it would have its colour as it is, and viser washes bright ones out.
        scene.add_light_ambient("/lamps/all", intensity=1.1)
        scene.add_light_directional(
            "/lamps/sun", intensity=1.5, position=(-40.0, 50.0, 90.0), cast_shadow=False
        )
        self.status = gui.add_markdown("Waiting for the first grid.")
        self.timeline = gui.add_folder("Timeline")
        with gui.add_folder("What is shown"):
            self.color_by = gui.add_dropdown("Colour by", tuple(NAMES.values()))
            self.legend = gui.add_html("")
            self.height: Any = gui.add_slider(
                "Height cut (m)", min=0.0, max=20.0, step=0.1, initial_value=20.0
            )
            self.arrows = gui.add_checkbox("Flow arrows", True)
            self.track = gui.add_checkbox("Ego track", True)
            self.cameras = gui.add_checkbox("Cameras", True)
        self._class_folder = gui.add_folder("Classes", expand_by_default=False)
        for control in (self.color_by, self.height, self.arrows, self.track, self.cameras):
            control.on_update(self._redraw_on)

    def show(self, shot: Shot, number: int, words: str = "") -> None:
        """Draw a shot. ``number`` orders the ego track; ``words`` end the status."""
        with self._lock:
            self._shot, self._number = shot, number
            if shot.label_set != self._label_set:
                self._offer_classes(shot)
            if shot.grid != self._grid:
                self._look_at(shot.grid)
            with self.server.atomic():
                self._draw(shot)
                self._show_pictures(shot)
                self.status.content = "  \n".join(filter(None, [*status_lines(shot), words]))
            self.updates += 1

    def _look_at(self, grid: VoxelGrid) -> None:
        """Put the vehicle and whoever looks from behind it where they belong in a grid's frame."""
        self._grid = grid
        self.height.max = self.height.value = grid.shape[2] * grid.cell_size[2]
        low, high = ego_box(grid)
        self.server.scene.add_box(
            "/ego",
            color=EGO_COLOR,
            dimensions=tuple(high - low),
            position=tuple((low + high) / 2),
            cast_shadow=False,
        )
        behind, ahead = (-30.0, 0.0, 26.0), (6.0, 0.0, 0.0)
        if grid.frame == "lidar":  # y is forward
            behind, ahead = (0.0, -30.0, 26.0), (0.0, 6.0, 0.0)
        self.server.initial_camera.position, self.server.initial_camera.look_at = behind, ahead

    def choice(self) -> Choice:
        """What the controls say."""
        on = frozenset(label for label, box in self._classes.items() if box.value)
        height = self.height.value if self.height.value < self.height.max else float("inf")
        return Choice(on, height, errors=self.color_by.value == NAMES["error"])

    def _offer_classes(self, shot: Shot) -> None:
        for control in self._classes.values():
            control.remove()
        self._label_set = shot.label_set
        with self._class_folder:
            self._classes = {
                label.id: self.server.gui.add_checkbox(label.name, True)
                for label in shot.label_set.labels
                if label.id != shot.label_set.free
            }
        for control in self._classes.values():
            control.on_update(self._redraw_on)

    def _redraw_on(self, _: Any) -> None:
        with self._lock:
            if self._shot is not None:
                with self.server.atomic():
                    self._draw(self._shot)
                self.updates += 1

    def _draw(self, shot: Shot) -> None:
        mask = chosen(shot, self.choice())
        by = next(key for key in COLOR_BY if NAMES[key] == self.color_by.value)
        self._explain(shot.label_set, by)
        colors, centers = _linear(voxel_colors(shot, by)), shot.centers()
        boxes, ground = split_by_shape(shot, mask)
        for name, mesh, index in (("boxes", box, boxes), ("ground", square, ground)):
            self._replace(
                name, self._voxels(name, mesh, centers[index], colors[index], shot) if len(index) else None
            )
        self._replace("flow", self._flow(shot, boxes) if self.arrows.value else None)
        path = self._track.before(shot, self._number)
        self._replace("track", self._line(path) if self.track.value and len(path) > 1 else None)
        self._draw_cameras(shot)

    def _voxels(
        self, name: str, mesh: Callable[..., Any], centers: np.ndarray, colors: np.ndarray, shot: Shot
    ) -> Any:
        vertices, faces = mesh(tuple(FILLED * edge for edge in shot.grid.cell_size))
        turn = np.zeros((len(centers), 4), dtype=np.float32)
        turn[:, 0] = 1.0
        return self.server.scene.add_batched_meshes_simple(
            f"/{name}",
            vertices,
            faces,
            batched_wxyzs=turn,
            batched_positions=centers,
            batched_colors=colors,
            lod="off",
            flat_shading=True,
            cast_shadow=False,
            receive_shadow=False,
        )

    def _flow(self, shot: Shot, boxes: np.ndarray) -> Any:
        arrows = flow_arrows(shot, boxes)
        if not len(arrows):
            return None
        return self.server.scene.add_arrows(
            "/flow", arrows, colors=(255, 255, 255), shaft_radius=0.05, head_radius=0.16, head_length=0.3
        )

    def _line(self, path: np.ndarray) -> Any:
        segments = np.stack([path[:-1], path[1:]], axis=1).astype(np.float32)
        return self.server.scene.add_line_segments("/track", segments, colors=(255, 80, 200), thickness=0.15)

    def _draw_cameras(self, shot: Shot) -> None:
        shown = shot.pictures if self.cameras.value else {}
        for name, picture in shown.items():
            if picture.ego_from_camera is None:
                continue
            place = picture.ego_from_camera
            height, width = picture.image.shape[:2]
            handle = self.server.scene.add_camera_frustum(
                f"/cameras/{name}",
                fov=picture.field_of_view,
                aspect=width / height,
                scale=1.2,
                color=(230, 230, 230),
                image=picture.image,
                jpeg_quality=70,
                wxyz=quaternion(place),
                position=place[:3, 3],
                cast_shadow=False,
                receive_shadow=False,
            )
            self._drawn[f"cameras/{name}"] = handle
        for key in [key for key in self._drawn if key.startswith("cameras/") and key[8:] not in shown]:
            self._drawn.pop(key).remove()

    def _explain(self, label_set: LabelSet, by: ColorBy) -> None:
        content = _html(legend(label_set, by))
        if self.legend.content != content:
            self.legend.content = content

    def _show_pictures(self, shot: Shot) -> None:
        if shot.pictures and self._picture_tab is None:
            panel = self.server.gui.add_panel()
            panel.dock_left()
            panel.set_width(IMAGES_WIDTH)
            self._picture_tab = panel.add_tab("Images")
        ahead, back = camera_rows(shot)
        for name in ahead + back:
            picture = shot.pictures[name]
            if name in self._pictures:
                self._pictures[name].image = picture.image
            else:
                with self._picture_tab:
                    self._pictures[name] = self.server.gui.add_image(
                        picture.image, label=name, jpeg_quality=75
                    )

    def _replace(self, name: str, handle: Any) -> None:
        """A node of the same name has been replaced by the new one already; without a new one the old one goes."""
        if handle is not None:
            self._drawn[name] = handle
        elif name in self._drawn:
            self._drawn.pop(name).remove()


def _linear(colors: Colors) -> Colors:
    """Screen colours (sRGB) as the light that viser takes an instance's colour for."""
    share = colors / 255.0
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return (255.0 * light).round().astype(np.uint8)


def _html(colors: dict[str, tuple[int, int, int]]) -> str:
    """Squares of colour with their names, as many in a row as fit."""
    square = "display:inline-block;width:0.8em;height:0.8em;margin-right:0.4em;border:1px solid #888;background:rgb"
    entries = [
        f'<span style="white-space:nowrap"><span style="{square}{color}"></span>{name}</span>'
        for name, color in colors.items()
    ]
    style = "display:flex;flex-wrap:wrap;gap:0.1em 0.9em;font-size:0.8em;padding:0 0.9em"
    return f'<div style="{style}">{"".join(entries)}</div>'


def _free_port(host: str, port: int) -> int:
    """The port, if it is free: viser would wait for ever for an address that is not this machine's."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UserError(
            f"cannot serve on {host}:{port}: {error.strerror}; choose another --port or --host"
        ) from error
