"""What benchmark/limits.py says a network could know."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "benchmark" / "limits.py"


def test_true_depth_beats_the_networks_own_and_rounding_it_costs():
    command = [sys.executable, str(SCRIPT), "--seeds", "500:501"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    single = result["single_frames"]
    assert single["pixels"]["miou"] > single["pixels, depth in bins"]["miou"] + 2
    assert single["network, true depth"]["iou"] > single["network"]["iou"] + 2
    above = result["iou_above_ground"]
    assert above["below 12 m"] > above["beyond"]
    error, zero, by_label = result["flow_epe_zero_and_by_label"]["all that moves"]
    assert 0 < error < zero
    assert 0 < by_label < zero
