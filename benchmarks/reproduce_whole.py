"""Run the whole study on the stand-in mirror: all models, nine studies, killed at random moments and resumed.

``python benchmarks/reproduce_whole.py [--kills 3]`` prints seconds, what was left out, and whether the tables of the killed
run are those of the run that was left alone.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "study"), str(ROOT / "tests" / "prompting")]
import standin  # noqa: E402
from prompting_endpoint import Endpoint, truthful  # noqa: E402


def answer(request: dict, number: int) -> object:
    """Both prompts: the published one asks for a list of digits."""
    text = request["messages"][-1]["content"]
    found = re.search(r"A total of (\d+) cells", text)
    return truthful(request) if found is None else "{res:" + ",".join("10"[i % 2] for i in range(int(found[1]))) + "}"


def start(registry: Path, store: Path, environment: dict[str, str]) -> subprocess.Popen:
    flags = [
        "--studies",
        ",".join((*standin.STUDIES, *standin.EXTERNAL)),
        "--store",
        str(store),
        "--n-folds",
        "2",
        "--no-measure",
        "--yes",
    ]
    flags += ["--lora-models", "scgpt,tgpt", "--lora-by", "tissue", "--lora-options", "epochs=1", "--predictors"]
    flags += ["--shots", "0,1", "--prompt-shots", "0,1", "--labels", str(registry.parent / "labels.csv")]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", standin.CHILD, str(registry), "reproduce", *flags], env=environment
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=0)
    kills = parser.parse_args().kills
    folder = Path(tempfile.mkdtemp(prefix="reproduce-"))
    generator, endpoint = standin.served(folder), Endpoint()
    _, registry = next(generator)
    endpoint.script = answer
    environment = os.environ | {"OPENAI_BASE_URL": endpoint.url, "MPLBACKEND": "agg"}
    begin = time.perf_counter()
    first = environment | {"SCDRUGMAP_CACHE_DIR": str(folder / "cache")}
    code = start(registry, folder / "whole", first).wait()
    seconds, used = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"whole run: exit code {code}, {seconds:.0f} s, of one processor {used.ru_utime + used.ru_stime:.0f} s")
    second = environment | {"SCDRUGMAP_CACHE_DIR": str(folder / "cache2")}
    for _ in range(kills):
        child = start(registry, folder / "killed", second)
        time.sleep(random.uniform(0.05, 0.4) * seconds)
        child.send_signal(signal.SIGKILL)
        child.wait()
        files = [f for f in (folder / "killed").rglob("*") if f.is_file()]
        newest = max(files, key=lambda f: f.stat().st_mtime).relative_to(folder) if files else "nothing"
        print(f"killed; last written: {newest}")
    same = True
    if kills:
        start(registry, folder / "killed", second).wait()
        for name in ("scores", "published", "leak", "few_shot", "predictors", "prompt_coverage"):
            one, two = (pd.read_csv(folder / run / "tables" / f"{name}.csv") for run in ("whole", "killed"))
            print(name, "the same" if one.equals(two) else "DIFFERENT")
            same &= one.equals(two)
    leak = pd.read_csv(folder / "whole" / "tables" / "leak.csv").query("metric == 'auroc'")
    print(leak.groupby("model")[["random_cells", "whole_samples", "leak"]].mean().round(3).to_string())
    generator.close()
    endpoint.close()
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
