"""Print what the package and its tests need, less PyTorch and what brings it along."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

HEAVY = {"torch", "accelerate", "peft", "scvi-tools", "transformers"}
#: Brought along by the heavy ones, or named here for the tests.
MORE = ["dask[array]>=2024.8", "hypothesis>=6.100", "pytest>=8"]

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
needed = [line for line in project["dependencies"] if re.split(r"[\\[<>=!~ ]", line)[0] not in HEAVY]
print("\n".join([*needed, *MORE]))
