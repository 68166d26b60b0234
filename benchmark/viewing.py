"""What looking and scoring cost: `python benchmark/viewing.py`.

Two figures, of grids of 200 x 200 x 16 cells of the made-up world with six images, flow and ground truth, printed as
one JSON object:

  rayiou   seconds of processor time for RayIoU of one frame, 8 origins x 39 x 360 rays, on one core
  page     updates a second of `gdfusion view` in a headless Chromium that draws in software, as it counts them itself,
           and the processor time that the server takes for one
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from typing import Any

import numpy as np

from gdfusion_ros import grid as grids
from gdfusion_ros.cli.datasets import Item, world_items
from gdfusion_ros.evaluation.rayiou import RayScore
from gdfusion_ros.frame import Flow, FlowKind, Occupancy
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.viewer.page import Page
from gdfusion_ros.viewer.player import Player
from gdfusion_ros.viewer.shot import Shot, make_shot

FRAMES, SECONDS = 20, 20.0
COUNT_UPDATES = """() => {
  window.seen = new Set();
  window.pictures = 0;
  const look = () => { window.pictures++; requestAnimationFrame(look); };
  look();
  const note = (changes) => {
    for (const { target } of changes) {
      const found = (target.textContent || "").match(/frame (\\d+) of/);
      if (found) window.seen.add(found[1]);
    }
  };
  new MutationObserver(note).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""
"""Counts the updates that reach the page's text, and the pictures that the browser had time to draw."""


def main() -> None:
    """Measure and print."""
    items = list(world_items(range(1), FRAMES, grids.OCC3D, (270, 480)))
    print(json.dumps({"rayiou": rayiou(items[0]), "page": page([shot(item) for item in items])}))


def rayiou(item: Item) -> dict[str, float]:
    """Seconds of one frame, predicted a cell too far."""
    assert item.truth is not None
    score = RayScore([i for i in range(18) if i != OCC3D.free], OCC3D.movable_ids)
    predicted = np.roll(item.truth.labels, 1, axis=0)
    velocity = np.zeros((*item.truth.grid.shape, 3), np.float32)
    origins = np.stack([np.linspace(-28.0, 28.0, 8), np.zeros(8), np.full(8, 1.84)], axis=1)
    seconds = []
    for _ in range(6):
        begin = time.process_time()
        score.add(predicted, item.truth, origins, velocity)
        seconds.append(time.process_time() - begin)
    return {"rays": 8 * 39 * 360, "cpu_s": statistics.median(seconds[1:])}  # the first one compiles


def shot(item: Item) -> Shot:
    """The truth as a prediction, with all that a grid can have."""
    assert item.truth is not None
    labels, velocity = item.truth.labels, item.truth.velocity
    assert velocity is not None
    flow = Flow(FlowKind.VELOCITY, velocity.astype(np.float32), labels != OCC3D.free)
    confidence = np.full(labels.shape, 200, np.uint8)
    frame = item.frame
    occupancy = Occupancy(
        labels,
        grids.OCC3D,
        OCC3D,
        frame.stamp_ns,
        1,
        0,
        (),
        (),
        "",
        "",
        frame.world_from_ego,
        confidence,
        flow,
    )
    return make_shot(occupancy, frame, labels)


def page(shots: list[Shot]) -> dict[str, Any]:
    """Updates a second of a page that plays as fast as it can."""
    served = Page(port=0)
    begin = time.process_time()
    for number, one in enumerate(shots):
        served.show(one, number)
    cpu = (time.process_time() - begin) / len(shots)
    result = {"voxels": int(np.mean([one.predicted.sum() for one in shots])), "cpu_s_per_update": cpu}
    player = Player(served, shots * 40, rate=30.0)
    try:
        result |= _in_browser(served, player)
    finally:
        player.close()
        served.server.stop()
    return result


def _in_browser(served: Page, player: Player) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("google-chrome")
    flags = ["--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=flags)
        tab = browser.new_page(viewport={"width": 1280, "height": 720})
        tab.goto(served.url, timeout=180_000)
        tab.get_by_text("frame 1 of").wait_for(timeout=180_000)
        time.sleep(10.0)  # for the page to have drawn itself
        tab.evaluate(COUNT_UPDATES)
        sent, begin = served.updates, time.perf_counter()
        player.resume()
        time.sleep(SECONDS)
        seen, pictures = tab.evaluate("() => [window.seen.size, window.pictures]")
        seconds = time.perf_counter() - begin
        player.pause()
        browser.close()
    return {
        "sent_per_s": (served.updates - sent) / seconds,
        "seen_per_s": seen / seconds,
        "pictures_per_s": pictures / seconds,
    }


if __name__ == "__main__":
    main()
