"""The page and the HTML file in a real browser: loads, draws, plays, steps, and hides classes."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gdfusion_ros.viewer.export import write_html
from gdfusion_ros.viewer.page import Page
from gdfusion_ros.viewer.player import LivePlayer, Player
from gdfusion_ros.viewer.shot import Shot

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 180.0
"""Seconds for anything to appear: WebGL in software on a busy machine draws a frame in seconds."""
SIZE: Any = {"width": 1100, "height": 560}
SCENE: Any = {"x": 240, "y": 170, "width": 420, "height": 380}
"""Nothing but the drawing, between the images and the controls and below what the page says of its renderer."""
ROAD, TERRAIN, RED = (0, 207, 191), (112, 180, 60), (220, 50, 50)

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium. Skipped where there is none, but not in continuous integration."""
    executable = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if executable is None:
        message = "no Chromium: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page() -> Iterator[Page]:
    """A page on some free port."""
    page = Page(port=0)
    yield page
    page.server.stop()


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if true():
            return
        time.sleep(0.5)
    pytest.fail(f"{what} did not happen within {PATIENCE:.0f} s")


def share(tab: Any, color: tuple[int, int, int]) -> float:
    """Share of the drawing's pixels that have a colour, at any brightness and a little washed out."""
    picture = tab.screenshot(timeout=PATIENCE * 1000, clip=SCENE)
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).reshape(-1, 3).astype(float)
    direction = np.array(color, float) / np.linalg.norm(color)
    length = np.linalg.norm(pixels, axis=1)
    return float(
        ((pixels @ direction > 0.96 * length) & (length > 60) & (np.ptp(pixels, axis=1) > 40)).mean()
    )


def opened(chromium: Any, url: str, allowed: str) -> tuple[Any, list[str]]:
    """A tab on the page, and the addresses it asked for that do not begin with ``allowed``."""
    tab = chromium.new_page(viewport=SIZE)
    foreign: list[str] = []

    def note(request: Any) -> None:
        if not request.url.startswith((allowed, "data:", "blob:")):
            foreign.append(request.url)

    tab.on("request", note)
    tab.goto(url, timeout=PATIENCE * 1000)
    return tab, foreign


def test_the_page_draws_steps_plays_and_hides_classes(chromium: Any, page: Page, shots: list[Shot]) -> None:
    player = Player(page, shots, rate=10.0)
    tab, foreign = opened(chromium, page.url, page.url)
    tab.get_by_text("frame 1 of 5").wait_for(timeout=PATIENCE * 1000)
    until(lambda: share(tab, ROAD) > 0.02 and share(tab, TERRAIN) > 0.05, "a drawing of road and grass")

    tab.get_by_role("button", name="Next", exact=True).click(timeout=PATIENCE * 1000)
    tab.get_by_text("frame 2 of 5").wait_for(timeout=PATIENCE * 1000)
    tab.get_by_role("button", name="Previous", exact=True).click(timeout=PATIENCE * 1000)
    tab.get_by_text("frame 1 of 5").wait_for(timeout=PATIENCE * 1000)

    tab.get_by_role("button", name="Play", exact=True).click(timeout=PATIENCE * 1000)
    tab.get_by_text("frame 5 of 5").wait_for(timeout=PATIENCE * 1000)

    with_road = share(tab, ROAD)
    tab.get_by_text("Classes", exact=True).click(timeout=PATIENCE * 1000)
    road = tab.get_by_label("driveable_surface")
    road.wait_for(state="visible", timeout=PATIENCE * 1000)  # the folder unfolds slowly
    # On the box itself, wherever the unfolding list has carried it by now.
    road.evaluate("box => box.click()")
    until(lambda: not page._classes[11].value, "the page's server hearing of the click")
    until(lambda: share(tab, ROAD) < 0.1 * with_road, "hiding the road")
    assert share(tab, TERRAIN) > 0.05

    assert foreign == []
    tab.close()
    player.close()


def test_the_html_file_draws_steps_plays_and_hides_classes_without_any_network(
    chromium: Any, shots: list[Shot], tmp_path: Path
) -> None:
    path = tmp_path / "street.html"
    assert write_html(shots, path) == 5
    tab, foreign = opened(chromium, path.as_uri(), "file:")
    tab.get_by_text("frame 1 of 5").wait_for(timeout=PATIENCE * 1000)
    until(lambda: share(tab, ROAD) > 0.02 and share(tab, TERRAIN) > 0.05, "a drawing of road and grass")
    assert tab.locator("#images img").count() == 2

    tab.get_by_role("button", name="Next").click(timeout=PATIENCE * 1000)
    tab.get_by_text("frame 2 of 5").wait_for(timeout=PATIENCE * 1000)
    tab.get_by_role("button", name="Play").click(timeout=PATIENCE * 1000)
    tab.get_by_text("frame 5 of 5").wait_for(timeout=PATIENCE * 1000)

    tab.get_by_label("Colour by").select_option("error")
    until(lambda: share(tab, RED) > 0, "the car in the colour of a false alarm")
    until(lambda: share(tab, ROAD) < 0.002, "the road in the colour of what is right")
    tab.get_by_label("Colour by").select_option("label")
    tab.get_by_label("driveable_surface").uncheck(timeout=PATIENCE * 1000)
    until(lambda: share(tab, ROAD) < 0.002 and share(tab, TERRAIN) > 0.05, "hiding the road")
    assert foreign == []
    tab.close()


def test_a_live_grid_appears_as_it_comes(chromium: Any, page: Page, shots: list[Shot]) -> None:
    player = LivePlayer(page)
    tab, _ = opened(chromium, page.url, page.url)
    tab.get_by_text("Waiting for the first grid").wait_for(timeout=PATIENCE * 1000)
    player.add(shots[0], 120.0)
    tab.get_by_text("120 ms after the exposure").wait_for(timeout=PATIENCE * 1000)
    until(lambda: share(tab, ROAD) > 0.02, "a drawing of the road")
    tab.close()
