"""ModelConfig: what a network is, read from a YAML under ``config/models`` and checked before anything is built."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from gdfusion_ros.errors import UserError
from gdfusion_ros.grid import Triple, VoxelGrid
from gdfusion_ros.labels import LABEL_SETS, LabelSet


@dataclass(frozen=True)
class ImageConfig:
    """The network's view of a camera image."""

    height: int
    width: int
    normalisation: Literal["imagenet", "caffe"] = "imagenet"
    """``imagenet``: mean and deviation of ImageNet. ``caffe``: only the mean is taken off."""
    padded: bool = False
    """The image is padded at the bottom and the right to multiples of 32, with the mean colour."""

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 32:
            raise ValueError(f"height and width must be at least 32, not {self.height} x {self.width}")
        if not self.padded and (self.height % 32 or self.width % 32):
            raise ValueError(f"height and width must be multiples of 32, not {self.height} x {self.width}")

    @property
    def network_size(self) -> tuple[int, int]:
        """Height and width of what goes into the network, padding included."""
        return -(-self.height // 32) * 32, -(-self.width // 32) * 32


@dataclass(frozen=True)
class GridConfig:
    """The grid of the voxel features: (lower, upper, step) in metres along each axis."""

    x: Triple
    y: Triple
    z: Triple
    frame: Literal["ego", "lidar"] = "ego"
    upsampling: tuple[int, int, int] = (1, 1, 1)
    """Output cells for each feature cell along x, y and z."""

    def __post_init__(self) -> None:
        for name, (lower, upper, step) in (("x", self.x), ("y", self.y), ("z", self.z)):
            cells = (upper - lower) / step if step > 0 else 0.0
            if cells < 1 - 1e-6 or abs(cells - round(cells)) > 1e-3:
                raise ValueError(f"{name} from {lower} to {upper} is no whole number of steps of {step}")
        if min(self.upsampling) < 1:
            raise ValueError(f"upsampling must be at least 1 along each axis, not {self.upsampling}")

    @property
    def features(self) -> VoxelGrid:
        """The grid that features are lifted into and fused in."""
        return VoxelGrid.from_bounds(self.x, self.y, self.z, self.frame)

    @property
    def output(self) -> VoxelGrid:
        """The grid of the labels."""
        grid = self.features
        u = self.upsampling
        cell, shape = grid.cell_size, grid.shape
        return VoxelGrid(
            grid.minimum,
            (cell[0] / u[0], cell[1] / u[1], cell[2] / u[2]),
            (shape[0] * u[0], shape[1] * u[1], shape[2] * u[2]),
            grid.frame,
        )


@dataclass(frozen=True)
class DepthBins:
    """The depth hypotheses ``lower, lower + step, ...`` below ``upper``, in metres along the optical axis."""

    lower: float
    upper: float
    step: float

    def __post_init__(self) -> None:
        if not 0 < self.lower < self.upper or self.step <= 0 or self.count < 2:
            raise ValueError(f"depth bins from {self.lower} to {self.upper} by {self.step} make no sense")

    @property
    def count(self) -> int:
        """Number of bins."""
        return round((self.upper - self.lower) / self.step)


@dataclass(frozen=True)
class TemporalConfig:
    """What a frame takes from the frames before it."""

    history: Literal["recurrent", "stacked", "previous", "none"] = "recurrent"
    """``recurrent``: GDFusion. ``stacked``: the last ``stacked_frames`` feature volumes. ``previous``: the frame
    before, placed anew in this frame's grid (COTR). ``none``: single frames."""
    voxel: bool = True
    scene: bool = True
    motion: bool = True
    geometry: bool = True
    """The four cues of ``recurrent``, each on or off."""
    motion_rate: float = 0.1
    """Step of the motion cue's gradient descent."""
    scene_rate: float = 1.0
    """Step of the scene cue's gradient descent."""
    frame_interval: float = 0.5
    """Seconds between frames that the time embedding was trained with."""
    max_time_steps: int = 40
    """The time embedding's position stops here: scenes of the training data have no more frames, and a stream of
    hours would leave the range that the weights know."""
    stacked_frames: int = 16
    warp: Literal["ego", "grid"] = "ego"
    """How history moves with the vehicle. ``ego``: by the ego frame's motion and with voxel indices at the cells'
    lower corners, as all published weights were trained, also where the grid lies in the LiDAR frame. ``grid``: by
    the motion of the grid itself and with indices at the cells' centres."""
    gains: bool = False
    """Fused features come in through learned gains that begin at zero, so that cues plugged into a trained network
    change nothing before they have learned something."""

    def __post_init__(self) -> None:
        if self.max_time_steps < 1 or self.stacked_frames < 1 or self.frame_interval <= 0:
            raise ValueError("max_time_steps, stacked_frames and frame_interval must be positive")
        if (self.gains or self.warp == "grid") and not self.recurrent:
            raise ValueError("gains and warp: grid belong to a recurrent history")

    @property
    def recurrent(self) -> bool:
        """Whether the history is GDFusion's."""
        return self.history == "recurrent"

    @property
    def uses_geometry(self) -> bool:
        """Whether the depth net fuses its logits with those of the frame before."""
        return self.recurrent and self.geometry


@dataclass(frozen=True)
class LabelConfig:
    """How the network's output channels become labels."""

    set: str
    """Name of a label set in ``gdfusion_ros.labels``."""
    excluded: tuple[int, ...] = ()
    """Labels that are never given: the annotation does not have them."""
    void_channel: bool = True
    """Whether channel 0 stands for nothing and label 0 is channel 1, as in the networks of this family tree."""

    def __post_init__(self) -> None:
        if self.set not in LABEL_SETS:
            raise ValueError(f"there is no label set {self.set!r}; there are {', '.join(sorted(LABEL_SETS))}")

    @property
    def labels(self) -> LabelSet:
        """The label set itself."""
        return LABEL_SETS[self.set]


@dataclass(frozen=True)
class WeightsConfig:
    """Where trained weights come from."""

    file: str
    """Name of the safetensors file under ``weights/`` or in the cache of ``gdfusion weights fetch``."""
    repository: str = ""
    """Hugging Face repository that has the published checkpoint; empty where there is none."""
    checkpoint: str = ""
    """The checkpoint's file name there."""
    sha256: str = ""
    """Of the published checkpoint (or of ``file`` where it is shipped); empty while nobody has seen it."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines a network but its weights."""

    name: str
    family: str
    """Which network of ``model/networks`` it is."""
    labels: LabelConfig
    cameras: tuple[str, ...]
    """In the network's order."""
    image: ImageConfig
    grid: GridConfig
    architecture: Any
    """The family's own settings: its ``Architecture`` dataclass."""
    depth: DepthBins | None = None
    """None for networks that estimate no depth."""
    temporal: TemporalConfig = TemporalConfig()
    weights: WeightsConfig | None = None

    def __post_init__(self) -> None:
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras must be a list of different names, not {list(self.cameras)}")

    @property
    def depth_bins(self) -> DepthBins:
        """The depth hypotheses of a network that needs some. Raises UserError when the model file has none."""
        if self.depth is None:
            raise UserError(f"{self.name}: a network of the family {self.family} needs the setting 'depth'")
        return self.depth

    def for_cameras(self, names: Sequence[str]) -> ModelConfig:
        """The same network for a rig with other cameras. Its weights were trained on the rig of the file."""
        return dataclasses.replace(self, cameras=tuple(names))


def load_config(model: str | Path) -> ModelConfig:
    """The configuration of a model by its name, or by the path of a YAML.

    Raises UserError, in one line, when there is no such model or the file does not describe one.
    """
    path = find_config(model)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the model file {path}: {error}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason}") from error
    return read_config(content, str(path))


def read_config(content: object, where: str) -> ModelConfig:
    """The configuration in the content of a model YAML; ``where`` names it in errors. Raises UserError."""
    from gdfusion_ros.model.networks import FAMILIES

    if not isinstance(content, Mapping):
        raise UserError(f"{where}: a model file is a mapping of settings, this is {type(content).__name__}")
    family = content.get("family")
    if family not in FAMILIES:
        raise UserError(f"{where}: family: there is no {family!r}; there are {', '.join(sorted(FAMILIES))}")
    architecture = read_section(
        FAMILIES[family].Architecture, content.get("architecture", {}), where, "architecture"
    )
    rest = {key: value for key, value in content.items() if key != "architecture"}
    config: ModelConfig = read_section(ModelConfig, rest, where, "", architecture=architecture)
    return config


def model_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.stem for path in _models_dir().glob("*.yaml"))


def _models_dir() -> Path:
    from gdfusion_ros.share import share_dir

    return share_dir() / "config" / "models"


def find_config(model: str | Path) -> Path:
    """The YAML of a model by its name or path. Raises UserError when there is none."""
    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"there is no model file {path}")
        return path
    named = _models_dir() / f"{model}.yaml"
    if not named.is_file():
        raise UserError(
            f"there is no model {str(model)!r}; there are {', '.join(model_names())}, or give a .yaml"
        )
    return named


def read_section(cls: type[Any], value: object, file: str, where: str, **given: Any) -> Any:
    """An instance of a dataclass from a mapping, every value checked against its type. Raises UserError."""
    place = f"{file}: {where}" if where else file
    if not isinstance(value, Mapping):
        raise UserError(f"{place}: expected a mapping of settings, not {value!r}")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in value:
        if key not in fields or key in given:
            raise UserError(f"{place}: there is no setting {key!r}; there are {', '.join(sorted(fields))}")
    arguments = dict(given)
    for name, field in fields.items():
        if name in given:
            continue
        if name in value:
            arguments[name] = _read(hints[name], value[name], file, f"{where}.{name}" if where else name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{place}: the setting {name!r} is missing")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error


def _read(hint: Any, value: object, file: str, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        return _read(next(arg for arg in get_args(hint) if arg is not type(None)), value, file, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return read_section(hint, value, file, where)
    if origin is Literal:
        if value not in get_args(hint):
            raise UserError(
                f"{file}: {where}: expected one of {', '.join(map(str, get_args(hint)))}, not {value!r}"
            )
        return value
    if origin is tuple:
        return _read_tuple(hint, value, file, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{file}: {where}: expected {hint.__name__}, not {value!r}")
    return value


def _read_tuple(hint: Any, value: object, file: str, where: str) -> tuple[Any, ...]:
    args = get_args(hint)
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{file}: {where}: expected a list, not {value!r}")
    kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
    if len(kinds) != len(value):
        raise UserError(f"{file}: {where}: expected {len(kinds)} values, not {len(value)}")
    return tuple(_read(kind, item, file, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value)))
