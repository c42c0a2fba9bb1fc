"""Importing the package is quick, lazy and without side effects."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_is_light():
    heavy = ["torch", "transformers", "scanpy", "scvi", "sklearn", "anndata", "pandas", "peft", "matplotlib"]
    out = run(f"import sys, scdrugmap; print([m for m in {heavy} if m in sys.modules])")
    assert out.strip() == "[]"


def test_import_takes_less_than_half_a_second():
    """Only what scdrugmap adds to a bare interpreter; the fastest of five, since machines are busy."""
    code = "import time; t = time.perf_counter(); import scdrugmap; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(5)) < 0.5


def test_import_changes_no_global_state():
    out = run(
        "import random, numpy, logging, warnings\n"
        "before = random.getstate(), numpy.random.get_state()[1].tolist(), list(logging.root.handlers), list(warnings.filters)\n"
        "import scdrugmap; scdrugmap.settings; scdrugmap.tl; scdrugmap.models\n"
        "after = random.getstate(), numpy.random.get_state()[1].tolist(), list(logging.root.handlers), list(warnings.filters)\n"
        "print(before == after)"
    )
    assert out.strip() == "True"


def test_everything_public_can_be_reached():
    import scdrugmap as sd

    for room in (sd, sd.pp, sd.tl, sd.pl, sd.models, sd.datasets, sd.testing):
        for name in dir(room):
            assert getattr(room, name) is not None


def test_a_benchmark_of_logistic_heads_needs_no_torch():
    code = """
import sys, numpy as np, anndata as ad, scdrugmap as sd
a = ad.AnnData(np.zeros((48, 2), "float32"))
a.obs["sample"] = np.repeat([f"s{i}" for i in range(6)], 8)
a.obs["response"] = np.where(np.arange(48) // 8 % 2, "sensitive", "resistant")
a.obsm["X_mine"] = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
sd.tl.benchmark(a, models="X_mine", head="logistic", n_folds=3, baselines=["majority"], rng=0)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
