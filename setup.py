"""The pip front end to CMakeLists.txt: build the messages and wrap what CMake installs into the wheel.

colcon does not read this file (package.xml says ament_cmake). All metadata is in pyproject.toml.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
PACKAGE = "gdfusion_ros"
SITE_PACKAGES = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


class BinaryDistribution(Distribution):
    """Says that the wheel belongs to one platform and one Python, although setuptools compiles nothing itself."""

    def has_ext_modules(self) -> bool:
        return True

    def has_data(self) -> bool:
        """What setuptools' editable_wheel asks before it installs data files; the class above has no such method."""
        return True


class BuildInterfaces(Command):
    """Run CMake into a staging prefix and hand its files to the wheel.

    The libraries and the share directory become data files, so that they land in the environment's ``lib`` and
    ``share``: an environment with ROS wheels is an ament prefix. The generated Python modules go beside the package's
    own ones, which in editable mode means into the source tree.
    """

    description = "build the ROS messages with CMake"
    editable_mode = False  # set by setuptools' editable_wheel
    user_options: list[tuple[str, str, str]] = []

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.build_temp: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"), ("build_temp", "build_temp"))

    def run(self) -> None:
        """Configure, build, install into the staging prefix, and distribute what is there."""
        build_dir = (ROOT / self.build_temp / "cmake").resolve()
        stage = (ROOT / self.build_temp / "stage").resolve()
        for leftover in (build_dir, stage):
            shutil.rmtree(leftover, ignore_errors=True)
        run_cmake(build_dir, stage)

        generated = stage / SITE_PACKAGES / PACKAGE
        target = ROOT / PACKAGE if self.editable_mode else ROOT / self.build_lib / PACKAGE
        for extension in target.glob(f"{PACKAGE}_s__*.so"):
            extension.unlink()  # of an earlier build, perhaps for another Python
        shutil.rmtree(target / "msg", ignore_errors=True)
        shutil.copytree(
            generated / "msg", target / "msg", ignore=shutil.ignore_patterns("*.c", "*.pyc", "__pycache__")
        )
        for library in generated.rglob("*.so"):
            destination = target / library.relative_to(generated)
            destination.unlink(missing_ok=True)  # a process that has it loaded keeps the old file
            shutil.copy2(library, destination)

        folders = [stage, *sorted(path for path in stage.rglob("*") if path.is_dir())]
        self.distribution.data_files = [
            (str(folder.relative_to(stage)), [str(file) for file in files])
            for folder in folders
            if is_payload(folder.relative_to(stage))
            for files in [sorted(file for file in folder.iterdir() if file.is_file() and file.suffix != ".c")]
            if files
        ]

    # What setuptools asks of every step of a build; the step's files are data files and generated modules.
    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def is_payload(folder: Path) -> bool:
    """Whether an installed folder goes into the wheel as data: not the C++ headers, not the package's modules (the
    wheel has them already), and no second set of metadata."""
    own_modules = Path(SITE_PACKAGES, PACKAGE)
    return not (
        folder.parts[:1] == ("include",)
        or folder.parts[: len(own_modules.parts)] == own_modules.parts
        or folder.name == "__pycache__"
        or folder.suffix == ".egg-info"
    )


def run_cmake(build_dir: Path, stage: Path) -> None:
    """Build the package with CMake and install it into ``stage``. Exits with one line when a tool is missing."""
    generators = find_spec("rosidl_adapter")
    if generators is None or generators.origin is None:
        sys.exit(
            "error: the ROS message generators are missing; install pyproject.toml's [build-system] requires"
        )
    # site-packages lies three levels below the prefix: lib/pythonX.Y/site-packages/rosidl_adapter/__init__.py
    prefix = str(Path(generators.origin).parents[4])
    scripts = sysconfig.get_path("scripts")
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([scripts, environment.get("PATH", "")])
    for variable in ("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH"):
        environment[variable] = os.pathsep.join(filter(None, [prefix, environment.get(variable)]))
    cmake = shutil.which("cmake", path=environment["PATH"])
    if cmake is None:
        sys.exit("error: cmake is missing; `pip install cmake ninja`, or drop --no-build-isolation")
    configure = [
        *(cmake, "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_TESTING=OFF",
        f"-DCMAKE_INSTALL_PREFIX={stage}",
        f"-DPYTHON_INSTALL_DIR={SITE_PACKAGES}",
        f"-DPython3_EXECUTABLE={sys.executable}",
        f"-DCMAKE_PROJECT_INCLUDE={ROOT / 'cmake' / 'ros_wheels_fixup.cmake'}",
    ]
    if any(is_our_tf2_msgs(Path(place)) for place in (sys.prefix, prefix)):
        # Found by CMake, it would not be built again, and pip would then take it away with the old version of us.
        configure.append("-DCMAKE_DISABLE_FIND_PACKAGE_tf2_msgs=TRUE")
    for command in (configure, [cmake, "--build", str(build_dir)], [cmake, "--install", str(build_dir)]):
        result = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if result.returncode != 0:
            print("\n".join(result.stdout.splitlines()[-60:]))
            sys.exit(f"error: building the ROS messages failed in `{' '.join(command[:3])} ...`")


def is_our_tf2_msgs(prefix: Path) -> bool:
    """Whether the tf2_msgs in this prefix is the one that this package brings along."""
    package_xml = prefix / "share/tf2_msgs/package.xml"
    return package_xml.is_file() and "brought along by gdfusion_ros" in package_xml.read_text()


class Build(build):
    """setuptools' build, with the messages as one more step."""

    sub_commands = [*build.sub_commands, ("build_interfaces", None)]


setup(
    distclass=BinaryDistribution,
    cmdclass={"build": Build, "build_interfaces": BuildInterfaces},
)
