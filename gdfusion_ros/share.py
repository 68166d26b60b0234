"""Where the files that come with the package lie: config/, launch/, weights/."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

PACKAGE = "gdfusion_ros"


@cache
def share_dir() -> Path:
    """The folder that holds ``config/``, ``launch/`` and ``weights/``.

    A source checkout that the package is imported from comes first, since its files belong to its code whatever else
    is installed; then the ament index (a sourced ROS workspace); then the Python environment. Raises
    FileNotFoundError when none of them has the files.
    """
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "package.xml").is_file() and (checkout / "config").is_dir():
        return checkout
    candidates = [folder for folder in (_ament_share(), Path(sys.prefix) / "share" / PACKAGE) if folder]
    for folder in candidates:
        if (folder / "config").is_dir():
            return folder
    looked = ", ".join(str(folder) for folder in (checkout, *candidates))
    raise FileNotFoundError(f"{PACKAGE}'s config folder is in none of {looked}; install the package again")


def _ament_share() -> Path | None:
    try:
        from ament_index_python.packages import get_package_share_directory
    except ImportError:
        return None
    try:
        return Path(get_package_share_directory(PACKAGE))
    except (LookupError, OSError):  # not in the index; AMENT_PREFIX_PATH is not set
        return None
