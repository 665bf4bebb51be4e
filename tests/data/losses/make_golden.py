"""Makes losses.npz of the cases in tests/loss_cases.py, with PyTorch in float64."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from loss_cases import CASES, torch_answer  # noqa: E402

found = {}
for name, case in CASES.items():
    for part, array in zip(("value", "gradient", "curvature"), torch_answer(case)):
        found[f"{name}_{part}"] = array
np.savez_compressed(Path(__file__).with_name("losses.npz"), **found)
