"""Attribution, perturbation and biomarkers: planted truth, cost, and what real cells show.

python benchmarks/attribution.py truth                     # planted genes, all models on random tiny networks and baselines
python benchmarks/attribution.py truth --parity FOLDER     # the networks of the parity checkpoints instead
python benchmarks/attribution.py cost                      # forward and backward passes per step, and what is missing
python benchmarks/attribution.py perturb                   # beside embedding every edited cell anew, and the bounds
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


def truth(names: list[str], parity: Path | None, seed: int, cells: int, most: int) -> None:
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
        report = sd.tl.attribution_report(adata, predictor, max_cells_per_sample=most, rng=seed)
        print(f"\n=== {name} ({time.perf_counter() - start:.0f} s)\n{report}", flush=True)
        rows.append({"model": name, "ok": report.ok, **report.table.set_index("check")["value"].to_dict()})
    print("\n" + pd.DataFrame(rows).to_string(index=False, float_format="%.2f"))


def cost(seed: int, cells: int) -> None:
    """Print what attribution costs, in forward-plus-backward passes over the cells for each step of the path."""
    adata = sd.datasets.simulate(n_studies=1, n_patients=4, n_cells=cells, n_genes=300, rng=seed)
    for name in ("tGPT", "Geneformer"):
        model = registry.get(name).random(gene_ids(adata))
        predictor = sd.tl.train(adata, model, head="logistic", rng=seed)
        once = _seconds(lambda p=predictor: _forward_backward(p, adata))
        print(f"{name}: {cells} cells, one forward and backward pass over them {once:.2f} s")
        for n_steps in (5, 10, 20):
            run = adata.copy()
            spent = _seconds(
                lambda run=run, n=n_steps, p=predictor: sd.tl.attribute(
                    run, p, n_steps=n, max_cells_per_sample=None, rng=seed
                )
            )
            gap, record = run.obs["attribution_gap"].abs(), run.uns["attribution_record"]
            print(
                f"  {n_steps} steps: {spent:.1f} s, {spent / once / n_steps:.2f} passes a step; completeness error median "
                f"{gap.median():.1e}, largest {gap.max():.1e}, cells that took more steps {record['refined_cells']}, "
                f"most {record['most_steps']}"
            )


def _forward_backward(predictor: sd.response.ResponsePredictor, adata: ad.AnnData) -> None:
    """One forward and one backward pass to the input embeddings of all cells, in the batches of the attribution."""
    import torch

    from scdrugmap.interpret.tokens import NetworkInput

    model = predictor.representation.load()
    given = NetworkInput(model, predictor.head, gene_ids(adata))
    _, tokens = given.tokenise(adata.X.tocsr())
    for rows in given.batches(tokens):
        with given._batch(tokens.take(rows)) as (_, value, x), torch.enable_grad():
            x = x.detach().requires_grad_()
            torch.autograd.grad(value(x, torch.arange(len(x))).sum(), x)


def perturbed(seed: int, n_genes: int, cells: int, size: int) -> None:
    """Print what perturbation costs beside embedding every edited cell anew, and what is the least it could cost."""
    adata = sd.datasets.simulate(n_studies=1, n_patients=4, n_cells=cells, n_genes=size, rng=seed)
    X = adata.X.tocsr()
    detection = np.asarray((X > 0).mean(axis=0)).ravel()
    expressed = np.flatnonzero(detection)
    most = np.argsort(-detection, kind="stable")[:n_genes]
    some = np.sort(np.random.default_rng(seed).permutation(expressed)[:n_genes])
    for name in ("tGPT", "Geneformer"):
        predictor = sd.tl.train(adata, registry.get(name).random(gene_ids(adata)), head="logistic", rng=seed)
        for title, genes in (("most often detected", most), ("random", some)):
            _compare(adata, predictor, f"{name}, {len(genes)} {title} of {size} genes, {cells} cells", genes, X)


def _compare(
    adata: ad.AnnData, predictor: sd.response.ResponsePredictor, title: str, genes: np.ndarray, X: object
) -> None:
    """Perturb, and embed a tenth of the pairs naively."""
    from scdrugmap.interpret.perturb import Perturbations
    from scdrugmap.interpret.scoring import Scorer

    scorer = Scorer(predictor, adata)
    base = scorer(X)
    some = genes[::10]
    each = Perturbations.of([np.array([g]) for g in some], adata.n_vars, "knockout", np.zeros(adata.n_vars))
    start, changes = time.perf_counter(), []
    for i in range(len(some)):
        changes.append((scorer(each.apply(X, np.full(X.shape[0], i))) - base).mean())
    naive = (time.perf_counter() - start) * len(genes) / len(some)
    run = adata.copy()
    names = adata.var_names[genes].tolist()
    run.obs["all"] = "all"
    spent = _seconds(lambda: sd.tl.perturb(run, predictor, genes=names, by="all", n_null=0, rng=0))
    found = run.uns["perturbation"].set_index("gene")["delta_logit"]
    apart = float(np.abs(found[adata.var_names[some]].to_numpy() - np.array(changes)).max())
    pairs, record = len(genes) * adata.n_obs, run.uns["perturbation_record"]
    expressing = int((X[:, genes] != 0).sum())
    print(
        f"{title}: every edited cell embedded anew {naive:.1f} s (from {len(some)} genes), sd.tl.perturb {spent:.1f} s"
    )
    print(f"  {naive / spent:.1f} x faster; largest difference of a mean change {apart:.1e}")
    skipping = naive * expressing / pairs
    print(
        f"  {expressing / pairs:.1%} of {pairs} pairs have the gene: skipping the others alone {skipping:.1f} s, "
        f"reached {skipping / spent:.2f} of that bound; {record['embedded_cells'] / pairs:.1%} have other tokens"
    )
    least = _positions(predictor, adata, genes, X)
    if least is not None:
        print(f"  positions behind the first token that differs: {least:.1%} of all, a bound of {1 / least:.1f} x")


def _positions(
    predictor: sd.response.ResponsePredictor, adata: ad.AnnData, genes: np.ndarray, X: object
) -> float | None:
    """Share of the positions that a causal network cannot share between the cell and the edited cell."""
    from scdrugmap.interpret.tokens import NetworkInput

    model = predictor.representation.load()
    if not hasattr(model.network, "resume"):
        return None
    given = NetworkInput(model, predictor.head, gene_ids(adata))
    counts, tokens = given.tokenise(X)
    column = given.columns[np.maximum(model.token_columns(tokens, counts), 0)]
    column[model.token_columns(tokens, counts) < 0] = -1
    _, place = tokens.positions()
    left = np.repeat(tokens.lengths - 1, tokens.lengths) - place
    return float(left[np.isin(column, genes)].sum() / ((tokens.lengths - 2).sum() * len(genes)))


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
    parser.add_argument("what", choices=("truth", "cost", "perturb", "real"))
    parser.add_argument("--models", nargs="+", default=["hvg", "pca", "scvi", *NETWORKS])
    parser.add_argument("--parity", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--study", choices=tuple(KNOWN), default="tian2019")
    parser.add_argument("--cells", type=int, default=800)
    parser.add_argument("--most", type=int, default=10, help="cells of each sample that are explained for the truth")
    parser.add_argument("--genes", type=int, default=300, help="simulated genes")
    parser.add_argument("--perturbed", type=int, default=100, help="genes that are perturbed")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.what == "truth":
        truth(args.models, args.parity, args.seed, args.cells, args.most)
    elif args.what == "cost":
        cost(args.seed, args.cells)
    elif args.what == "perturb":
        perturbed(args.seed, args.perturbed, args.cells, args.genes)
    else:
        real(args.data, args.study, args.seed)


if __name__ == "__main__":
    main()
