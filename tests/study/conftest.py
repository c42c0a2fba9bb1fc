"""The stand-in is a module of this folder."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
matplotlib.rcParams["savefig.dpi"] = 40
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "prompting")]
