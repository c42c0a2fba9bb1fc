"""Attribution, perturbation and biomarkers: planted truth, cost, and what real cells show.

python benchmarks/attribution.py truth                     # planted genes, all models on random tiny networks and baselines
python benchmarks/attribution.py truth --parity FOLDER     # the networks of the parity checkpoints instead
python benchmarks/attribution.py cost                      # forward and backward passes, skipped cells
python benchmarks/attribution.py real --data FOLDER        # ranks of known genes in tian2019 and kinker2020
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import scdrugmap as sd
from scdrugmap._anndata import gene_ids
from scdrugmap.models import registry

NETWORKS = ("tGPT", "scBERT", "Geneformer", "CellLM", "scFoundation", "scGPT", "CellPLM", "UCE", "Llama-3-8B")
#: Genes that should come out, by study.
KNOWN = {
    "tian2019": (
        "EGFR",
        "ERBB2",
        "ERBB3",
        "MET",
        "AXL",
        "FGFR1",
        "IGF1R",
        "HGF",
        "DUSP6",
        "SPRY2",
        "SPRY4",
        "ETV4",
        "ETV5",
    ),
    "kinker2020": ("EGFR", "ERBB2", "ERBB3", "MET", "AXL", "FGFR1", "IGF1R", "DUSP6", "SPRY2", "SPRY4", "ETV4", "ETV5"),
}


def truth(names: list[str], parity: Path | None, seed: int, cells: int) -> None:
    """Print the report of every model on simulated cells."""
    adata = sd.datasets.simulate(
        n_studies=1, n_patients=8, n_samples_per_patient=1, n_cells=cells, n_genes=300, rng=seed
    )
    rows = []
    for name in names:
        kind = registry.get(name)
        if kind.card.kind == "fitted":
            model = name
        elif parity is not None:
            model = registry.load(name, parity / kind.card.key)
        else:
            model = kind.random(gene_ids(adata))
        start = time.perf_counter()
        predictor = sd.tl.train(adata, model, head="logistic", rng=seed)
        report = sd.tl.attribution_report(adata, predictor, max_cells_per_sample=10, rng=seed)
        print(f"\n=== {name} ({time.perf_counter() - start:.0f} s)\n{report}", flush=True)
        rows.append({"model": name, "ok": report.ok, **report.table.set_index("check")["value"].to_dict()})
    print("\n" + pd.DataFrame(rows).to_string(index=False, float_format="%.2f"))


def cost(seed: int) -> None:
    """Print what attribution and perturbation cost beside one pass over the cells."""
    adata = sd.datasets.simulate(n_studies=1, n_patients=4, n_cells=1000, n_genes=300, rng=seed)
    for name in ("tGPT", "Geneformer"):
        model = registry.get(name).random(gene_ids(adata))
        predictor = sd.tl.train(adata, model, head="logistic", rng=seed)
        once = _seconds(lambda predictor=predictor: predictor.features(adata))
        for n_steps in (5, 20):
            run = adata.copy()
            spent = _seconds(
                lambda run=run, n=n_steps, p=predictor: sd.tl.attribute(
                    run, p, n_steps=n, max_cells_per_sample=None, rng=seed
                )
            )
            gap = run.obs["attribution_gap"].abs()
            print(
                f"{name}: {n_steps} steps {spent / once:.1f} forward passes, gap {gap.median():.1e} (max {gap.max():.1e})"
            )
        genes = adata.var_names[np.argsort(-(adata.X > 0).mean(0).A1)[:100]].tolist()
        run = adata.copy()
        spent = _seconds(lambda run=run, p=predictor, g=genes: sd.tl.perturb(run, p, genes=g, n_null=0, rng=seed))
        record = run.uns["perturbation_record"]
        naive, bound = record["pairs"] * once / adata.n_obs, record["edited_cells"] * once / adata.n_obs
        print(
            f"{name}: {len(genes)} genes in {spent:.1f} s; every cell again {naive:.1f} s ({naive / spent:.1f} x); "
            f"bound by changed cells {bound:.1f} s, reached {bound / spent:.2f} of it"
        )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def real(folder: Path, study: str, seed: int) -> None:
    """Print the ranks of known genes among the differences between samples, and in a predictor's attribution."""
    files = {"tian2019": ["tian2019_lung_mixology"], "kinker2020": ["kinker2020_scc47", "kinker2020_jhu006"]}[study]
    parts = {name: ad.read_h5ad(folder / f"{name}.h5ad") for name in files}
    adata = next(iter(parts.values())) if len(parts) == 1 else sd.pp.concat_studies(parts)
    # Two cell lines of one laboratory are one study: the label lies between them.
    if len(parts) > 1:
        adata.obs["study"] = study
    ranks(adata, study, seed)


def ranks(adata: ad.AnnData, study: str, seed: int) -> None:
    """Print where known genes stand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sd.tl.biomarkers(adata, rng=seed)
        predictor = sd.tl.train(adata, "pca", head="logistic", rng=seed)
        sd.tl.attribute(adata, predictor, rng=seed)
    for name, column in (("biomarkers", "log2_fc"), ("attribution", "attribution")):
        table = adata.uns[name].reset_index(drop=True)
        table["rank"] = np.arange(1, len(table) + 1)
        found = table[table["gene"].isin(KNOWN[study])]
        print(f"\n{study}, {name}: {len(found)} of {len(KNOWN[study])} known genes are measured, of {len(table)} genes")
        print(found[["gene", "rank", column]].to_string(index=False))
    print(list(adata.uns["biomarkers_record"]["reasons"]))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("truth", "cost", "real"))
    parser.add_argument("--models", nargs="+", default=["hvg", "pca", "scvi", *NETWORKS])
    parser.add_argument("--parity", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--study", choices=tuple(KNOWN), default="tian2019")
    parser.add_argument("--cells", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.what == "truth":
        truth(args.models, args.parity, args.seed, args.cells)
    elif args.what == "cost":
        cost(args.seed)
    else:
        real(args.data, args.study, args.seed)


if __name__ == "__main__":
    main()
