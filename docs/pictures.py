"""Makes docs/images anew with the shipped weights: `make pictures`, or `python docs/pictures.py`.

Needs a Chromium (`apt-get install chromium`) for the pictures of the viewer, and about ten minutes on two cores.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

IMAGES = Path(__file__).parent / "images"
GDFUSION = [sys.executable, "-m", "gdfusion_ros.cli.main"]
WIDTH = 1280
PATIENCE = 300_000.0
"""Milliseconds for anything to appear in a browser that draws in software."""
FLAGS = ["--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def main() -> None:
    """Make them all."""
    IMAGES.mkdir(exist_ok=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        demo, scores, page = folder / "demo", folder / "scores", folder / "drive.html"
        gdfusion("demo", "--out", str(demo))
        keep(demo / "grid.png", "demo.jpg")
        world = ["--source", "world", "--seeds", "100:104", "--frames", "10"]
        gdfusion("evaluate", *world, "--out", str(scores))
        keep(scores / "classes.png", "classes.png")
        keep(scores / "confusion.png", "confusion.png")
        keep(next((scores / "worst").glob("01_*.png")), "worst.jpg")
        gdfusion("view", "--source", "world:108", "--frames", "10", "--html", str(page))
        with browser() as tab:
            with serving(str(demo / "output"), str(demo / "input")) as url:
                show_page(tab, url)
            show_file(tab, page)


def gdfusion(*arguments: str) -> None:
    """Run one command."""
    print("gdfusion", *arguments, flush=True)
    subprocess.run([*GDFUSION, *arguments], check=True)


def keep(path: Path, name: str) -> None:
    """Store a picture, no wider than a page shows it."""
    image = Image.open(path).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    image.save(IMAGES / name, optimize=True, quality=88)


@contextmanager
def browser() -> Iterator[Any]:
    """A tab of a headless Chromium."""
    from playwright.sync_api import sync_playwright

    executable = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if executable is None:
        sys.exit("there is no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        tab = chromium.new_page(viewport={"width": WIDTH, "height": 800})
        tab.set_default_timeout(PATIENCE)
        yield tab
        chromium.close()


@contextmanager
def serving(*recordings: str) -> Iterator[str]:
    """The address of `gdfusion view` on some recordings."""
    command = [*GDFUSION, "view", *recordings, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(
                found[0] for line in process.stdout if (found := re.findall(r"serving on (\S+),", line))
            )
        finally:
            process.terminate()


def show_page(tab: Any, url: str) -> None:
    """The served page at the demo's last frame."""
    tab.goto(url)
    tab.get_by_role("button", name="Play", exact=True).click()
    tab.get_by_text("frame 8 of 8").wait_for()
    tab.locator(".mantine-Notification-closeButton").first.click()  # what viser says of drawing in software
    tab.wait_for_timeout(10_000)  # the drawing follows the text
    tab.screenshot(path=str(IMAGES / "page.png"))


def show_file(tab: Any, page: Path) -> None:
    """The HTML file, coloured by error."""
    tab.goto(page.as_uri())
    tab.get_by_text("frame 1 of 10").wait_for()
    tab.get_by_role("button", name="Play").click()
    tab.get_by_text("frame 10 of 10").wait_for()
    tab.get_by_label("Colour by").select_option("error")
    tab.wait_for_timeout(5_000)
    tab.screenshot(path=str(IMAGES / "file.png"))


if __name__ == "__main__":
    main()
