"""The whole job on real cells: how much was leakage, what transfers to another study, do prediction sets hold.

    python benchmarks/real_studies.py --out real_studies          # a quarter of an hour on one core
    python benchmarks/real_studies.py --out look --folds 2 --scvi-epochs 2 --repeats 1

Reads the studies from the folder ``data`` under ``$SCDRUGMAP_SHARED`` (or ``--data``), works through the public functions
alone, prints every table, and writes it into the folder as CSV and Markdown beside one HTML report per benchmark:

* ``leakage``: random cells against whole samples, whole cell lines and whole batches, on the same cells;
* ``heads``: perceptron and logistic regression on frozen baselines, where samples (or the authors' folds) stay whole;
* ``cross`` and ``transfer``: lung mixology against the head-and-neck lines of Kinker et al., and back;
* ``conformal``: coverage of prediction sets on held-out samples, simulated and real, against the nominal level.

The labels of the mixology are those of its cell lines, copied to every cell; those of Kinker et al. are two subpopulations
of each line. Both are easy inside the study and say little about patients; see the provenance in ``uns`` of each file.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

import scdrugmap as sd
from scdrugmap._metrics import evaluate

METRICS = ("f1", "f1_macro", "auroc", "auprc")
TRIVIAL = ["all_sensitive", "majority", "random", "depth", "sample_probe"]
NAMES = {"tian": "mixology", "scc47": "SCC47", "jhu006": "JHU006"}
LEVELS = (0.8, 0.9, 0.95)
SPLIT_NAMES = {
    ("pooled", "cell"): "random cells",
    ("pooled", "sample"): "whole samples",
    ("pooled", "cell_line"): "whole cell lines",
    ("cross", "study"): "left-out batch",
    ("cross", "author_fold"): "authors' folds",
}


class Out:
    """The folder of results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.start = time.perf_counter()

    def report(self, name: str, title: str, result: Any) -> None:
        """Keep a result (``BenchmarkResult.from_parquet`` reads it) and write its page."""
        result.to_parquet(self.folder / "results" / name)
        result.report(self.folder / f"{name}.html", title=title)

    def table(self, name: str, title: str, frame: pd.DataFrame) -> None:
        """Print a table and write it as CSV and Markdown."""
        frame.to_csv(self.folder / f"{name}.csv", index=False)
        text = frame.copy()
        for column in text.select_dtypes("float"):
            text[column] = text[column].map(lambda v: "n/a" if np.isnan(v) else f"{v:.3f}")
        rows = [list(map(str, frame.columns)), *text.astype(str).to_numpy().tolist()]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "|" + " --- |" * frame.shape[1])
        (self.folder / f"{name}.md").write_text(f"# {title}\n\n" + "\n".join(lines) + "\n")
        print(f"\n## {title}  [{time.perf_counter() - self.start:.0f} s]\n", *lines, sep="\n", flush=True)


# Data -------------------------------------------------------------------------------------------------------


def read(data: Path) -> dict[str, ad.AnnData]:
    """Read the studies; a sample is what got one label in the laboratory, as far as the files tell."""
    names = {
        "tian": "tian2019_lung_mixology",
        "scc47": "kinker2020_scc47",
        "jhu006": "kinker2020_jhu006",
        "sorafenib": "scfoundation_scc47_sorafenib",
        "nvp-tae684": "scfoundation_scc47_nvp-tae684",
    }
    return {key: ad.read_h5ad(data / f"{name}.h5ad") for key, name in names.items()}


def check(studies: dict[str, ad.AnnData], out: Out) -> None:
    """Say what ``sd.pp.check`` and ``sd.tl.leakage_report`` find."""
    parts = []
    for name in ("tian", "scc47", "jhu006"):
        adata = studies[name]
        report = sd.pp.check(adata)
        leaks = sd.tl.leakage_report(adata).leaks
        parts.append(
            {"study": name, "cells": report.n_cells, "genes": report.n_genes, "ready": report.ok}
            | {"warnings": "; ".join(f.message for f in report.warnings), "leaks": "; ".join(leaks)}
        )
    out.table("check", "What the checks say", pd.DataFrame(parts))


def kinker(studies: dict[str, ad.AnnData]) -> ad.AnnData:
    """Both head-and-neck lines: one study, two samples."""
    return sd.pp.concat_studies({"SCC47": studies["scc47"], "JHU006": studies["jhu006"]})


def two_studies(studies: dict[str, ad.AnnData]) -> ad.AnnData:
    """The lung mixology and both head-and-neck lines over the genes that all share, as two studies."""
    tian = studies["tian"].copy()
    tian.obs["sample"] = tian.obs["cell_line"].astype(str)
    both = sd.pp.concat_studies({"Tian 2019": tian, "SCC47": studies["scc47"], "JHU006": studies["jhu006"]})
    both.obs["study"] = np.where(both.obs["study"] == "Tian 2019", "Tian 2019", "Kinker 2020")
    return both


# Benchmarks -------------------------------------------------------------------------------------------------


def settings(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Arguments that every benchmark shares."""
    return {
        "models": ["hvg", "pca", "scvi"], "head": ["published", "logistic"], "baselines": TRIVIAL, "n_folds": args.folds,
        "embed_options": {"scvi": {"max_epochs": args.scvi_epochs}}, "rng": args.seed, "n_jobs": 1,
        "store": args.out / "store" if args.resume else None, **more,
    }  # fmt: skip


def long(result: Any, title: str, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Return one row per contender and split, one column per metric."""
    frame = result.summary(metrics=metrics, n_resamples=0)
    frame["split"] = [SPLIT_NAMES[key] for key in zip(frame["setting"], frame["split"], strict=True)]
    labels = result.contenders.set_index(["model", "strategy", "head"])["label"]
    frame["model"] = [labels[key] for key in zip(frame["model"], frame["strategy"], frame["head"], strict=True)]
    frame["model"] = frame["model"].str.replace("frozen, ", "")
    wide = frame.pivot_table(
        index=["model", "split"], columns="metric", values="value", sort=False, dropna=False, observed=True
    )
    asked = frame[["model", "split"]].drop_duplicates().set_index(["model", "split"]).index
    wide = wide.reindex(asked)[[m for m in metrics if m in wide]].reset_index()
    reasons = frame.groupby(["model", "split"], sort=False)["reason"].first()
    undefined = wide["f1"].isna() if "f1" in wide else pd.Series(False, index=wide.index)
    found = [reasons[key] for key in zip(wide["model"], wide["split"], strict=True)]
    wide["why not"] = np.where(undefined, found, "")
    wide.insert(0, "task", title)
    return wide


def side_by_side(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one column per split."""
    wide = table.pivot_table(
        index=["task", "model"], columns="split", values=metric, sort=False, dropna=False, observed=True
    )
    return wide.reindex(table[["task", "model"]].drop_duplicates()).reset_index().rename_axis(columns=None)


def leakage(studies: dict[str, ad.AnnData], args: argparse.Namespace, out: Out) -> pd.DataFrame:
    """Compare the ways of splitting the same cells; batches of the mixology are its studies."""
    tian, parts, probes = studies["tian"], [], []
    for drug in ("gefitinib", "afatinib"):
        columns = {"label_key": f"response_{drug}", "sample_key": "cell_line", "study_key": "batch"}
        pooled = sd.tl.benchmark(tian, split=["cell", "sample", "cell_line"], **columns, **settings(args))
        batches = sd.tl.benchmark(tian, setting="cross", **columns, **settings(args, baselines=TRIVIAL[:-1]))
        parts += [long(pooled, f"mixology, {drug}"), long(batches, f"mixology, {drug}")]
        probes.append(probe(pooled, f"mixology, {drug}"))
        out.report(f"mixology_{drug}", f"Lung mixology, {drug}", pooled)
        out.report(f"mixology_{drug}_batches", f"Lung mixology, {drug}: new batches", batches)
    both = kinker(studies)
    result = sd.tl.benchmark(both, split=["cell", "sample"], **settings(args))
    parts.append(long(result, "Kinker, SCC47 + JHU006"))
    probes.append(probe(result, "Kinker, SCC47 + JHU006"))
    out.report("kinker", "Kinker 2020, SCC47 and JHU006", result)
    table = pd.concat(parts, ignore_index=True)
    for metric, label in (("auroc", "AUROC"), ("f1", "F1 (sensitive)")):
        out.table(f"leakage_{metric}", f"How much was leakage? {label} by split", side_by_side(table, metric))
    reasons = table[table["why not"] != ""][["task", "split", "why not"]].drop_duplicates()
    out.table("leakage_reasons", "What cannot be evaluated, and why", reasons)
    out.table("sample_probe", "Does the representation recognise the sample?", pd.concat(probes, ignore_index=True))
    return table


def probe(result: Any, title: str) -> pd.DataFrame:
    """Balanced accuracy of predicting the sample."""
    rows = result.table[result.table["setting"] == "probe"]
    wide = rows.pivot_table(index="model", columns="metric", values="value", sort=False).reset_index()
    wide.insert(0, "task", title)
    return wide.rename_axis(columns=None)


def heads(studies: dict[str, ad.AnnData], table: pd.DataFrame, args: argparse.Namespace, out: Out) -> None:
    """Frozen heads where groups stay whole, and the published embeddings on the authors' folds."""
    parts = [table[table["split"].isin(["whole samples", "left-out batch"])]]
    for drug in ("sorafenib", "nvp-tae684"):
        adata = studies[drug].copy()
        # One line is one sample; to follow the authors, who divide its cells, each cell has to count as a sample.
        adata.obs["cell"] = adata.obs_names
        result = sd.tl.benchmark(
            adata, models={"scFoundation": "X_scfoundation"}, head=["mlp", "published", "logistic"], setting="cross",
            split="author_fold", sample_key="cell", baselines=["all_sensitive", "majority"], rng=args.seed, n_jobs=1,
        )  # fmt: skip
        parts.append(long(result, f"SCC47, {drug}"))
    frozen = pd.concat(parts, ignore_index=True)
    out.table("heads", "Frozen heads on grouped splits", frozen.drop(columns="why not"))


def cross(studies: dict[str, ad.AnnData], args: argparse.Namespace, out: Out) -> None:
    """Leave one of two real studies out, and each source against each target."""
    both = two_studies(studies)
    result = sd.tl.benchmark(both, setting="cross", **settings(args))
    out.report("cross", "Lung mixology against head-and-neck lines", result)
    labels = result.contenders.set_index(["model", "strategy", "head"])["label"]
    rows = result.table.query("setting == 'cross' and level == 'cell' and metric in @METRICS")
    rows = rows.assign(
        model=[labels[k] for k in zip(rows["model"], rows["strategy"], rows["head"], strict=True)],
    )
    wide = rows.pivot_table(index=["group", "model"], columns="metric", values="value", sort=False)
    wide = wide[[m for m in METRICS if m in wide]].reset_index().rename(columns={"group": "tested on"})
    out.table("cross", "Trained on one study, tested on the other", wide.rename_axis(columns=None))
    records = []
    for model in ("hvg", "pca"):
        for a, b in (("tian", "scc47"), ("tian", "jhu006"), ("scc47", "jhu006")):
            pair = sd.pp.concat_studies({NAMES[a]: studies[a], NAMES[b]: studies[b]})
            sides = [pair[pair.obs["study"] == NAMES[k]].copy() for k in (a, b)]
            for source, target in (sides, sides[::-1]):
                records.append({"model": model, **transfer(source, target, model, args.seed)})
    out.table("transfer", "Logistic regression, source to target", pd.DataFrame(records))


def transfer(source: ad.AnnData, query: ad.AnnData, model: str, seed: int) -> dict[str, Any]:
    """Train on one study, predict another over their common genes, and score the calls."""
    predictor = sd.tl.train(source, model, head="logistic", ood=True, rng=seed)
    found = sd.tl.predict_response(query, predictor, key_added="call", copy=True)
    y = (query.obs["response"] == "sensitive").to_numpy().astype(int)
    score, pred = found.obs["call_score"].to_numpy(), (found.obs["call_pred"] == "sensitive").to_numpy()
    scores = {name: value for name, (value, _) in evaluate(y, score, pred, list(METRICS)).items()}
    names = {"trained on": source.obs["study"].iloc[0], "tested on": query.obs["study"].iloc[0], "genes": query.n_vars}
    p = float(y.mean())
    return names | scores | {"floor f1": 2 * p / (1 + p), "out of domain": float(found.obs["call_ood"].mean())}


# Prediction sets --------------------------------------------------------------------------------------------


def covered(sets: pd.Series, known: pd.Series) -> np.ndarray:
    """Whether each set holds the label."""
    return np.array([k in s.split("|") for s, k in zip(sets.astype(str), known.astype(str), strict=True)])


def coverage(
    train: ad.AnnData, query: ad.AnnData, sample_key: str, seed: int, *, model: str = "pca", **options: Any
) -> pd.DataFrame:
    """Coverage of the sets on held-out cells at several nominal levels."""
    predictor = sd.tl.train(train, model, head="logistic", conformal=0.9, rng=seed, **options)
    records = []
    for level in LEVELS:
        found = sd.tl.predict_response(query, predictor, key_added="call", conformal=level, copy=True)
        hit = covered(found.obs["call_set"], query.obs["response"])
        size = found.obs["call_set"].astype(str)
        sensitive = (query.obs["response"] == "sensitive").to_numpy()
        per_sample = pd.Series(hit).groupby(query.obs[sample_key].astype(str).to_numpy()).mean()
        records.append(
            {"nominal": level, "cells": len(hit), "samples": len(per_sample), "coverage": hit.mean()}
            | {"coverage sensitive": hit[sensitive].mean(), "coverage resistant": hit[~sensitive].mean()}
            | {"worst sample": per_sample.min(), "one class": float(size.isin(["sensitive", "resistant"]).mean())}
            | {"both": float((size == "resistant|sensitive").mean()), "neither": float((size == "").mean())}
        )
    return pd.DataFrame(records)


def simulated(args: argparse.Namespace) -> pd.DataFrame:
    """Half of the patients of one study are new, several times over."""
    parts = []
    for name, patient in (("patients alike", 0.0), ("patients differ", 0.3)):
        for seed in range(args.repeats):
            adata = sd.datasets.simulate(
                n_studies=1, n_patients=20, n_cells=1600, n_genes=400, patient_effect=patient, rng=seed
            )
            patients = adata.obs["patient"].astype(str)
            new = np.random.default_rng(seed).permutation(np.unique(patients))[:10]
            held = patients.isin(new).to_numpy()
            one = coverage(adata[~held].copy(), adata[held].copy(), "sample", seed, groups="patient")
            parts.append(one.assign(task=f"simulated, {name}"))
    grouped = pd.concat(parts).groupby(["task", "nominal"], sort=False)
    out = grouped.mean()
    out["worst sample"] = grouped["worst sample"].min()
    out.insert(2, "runs", grouped.size())
    return out.reset_index()


def conformal(studies: dict[str, ad.AnnData], args: argparse.Namespace, out: Out) -> None:
    """Coverage against the nominal level."""
    parts = [simulated(args)]
    tian = studies["tian"]
    batches = [
        coverage(tian[tian.obs["batch"] != b].copy(), tian[tian.obs["batch"] == b].copy(), "sample", args.seed)
        for b in tian.obs["batch"].unique()
    ]
    grouped = pd.concat(batches).groupby("nominal", sort=False)
    mixology = grouped.mean().assign(task="mixology, left-out batch", runs=len(batches)).reset_index()
    mixology["worst sample"] = grouped["worst sample"].min().to_numpy()
    parts.append(mixology)
    both = two_studies(studies)
    line = both.obs["sample"].astype(str).str.split(":").str[1]
    scc = both[(line == "SCC47").to_numpy()].copy()
    # The line is one sample: calibration has nothing but its cells to hold out.
    scc.obs["cell"] = scc.obs_names
    new = {
        "SCC47 -> JHU006": both[(line == "JHU006").to_numpy()].copy(),
        "SCC47 -> mixology (another study)": both[(both.obs["study"] == "Tian 2019").to_numpy()].copy(),
    }
    for name, query in new.items():
        one = coverage(scc, query, "sample", args.seed, model="hvg", groups="cell")
        parts.append(one.assign(task=name, runs=1))
    table = pd.concat(parts, ignore_index=True)
    first = ["task", "runs", "nominal", "coverage", "coverage sensitive", "coverage resistant", "worst sample"]
    out.table(
        "conformal", "Coverage of prediction sets on held-out samples", table[[*first, "one class", "both", "neither"]]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("SCDRUGMAP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder with the h5ad files")
    parser.add_argument("--out", type=Path, default=Path("real_studies"))
    parser.add_argument("--parts", nargs="*", default=["leakage", "cross", "conformal"])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--scvi-epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=10, help="simulated data sets per row of the conformal table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", action="store_true", help="keep finished units in the output folder and go on there"
    )
    args = parser.parse_args()
    if not (args.data / "tian2019_lung_mixology.h5ad").is_file():
        parser.error(f"no studies in {args.data}; point SCDRUGMAP_SHARED at the folder above 'data'")
    warnings.filterwarnings("ignore", message=".* cells have no label and take no part")
    out, studies = Out(args.out), read(args.data)
    check(studies, out)
    if "leakage" in args.parts:
        heads(studies, leakage(studies, args, out), args, out)
    if "cross" in args.parts:
        cross(studies, args, out)
    if "conformal" in args.parts:
        conformal(studies, args, out)
    print(f"\nTables and reports: {args.out.resolve()}")


if __name__ == "__main__":
    main()
