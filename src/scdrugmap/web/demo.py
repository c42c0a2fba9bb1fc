"""Three results that need no upload: simulated cells whose truth is known, and said so."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from scdrugmap.web.database import Job, session
from scdrugmap.web.jobs import new_job
from scdrugmap.web.state import Server

TITLES = {
    "demo:tumour": "Demo: an unlabelled tumour",
    "demo:studies": "Demo: labelled cells of several studies",
    "demo:foreign": "Demo: cells from outside the training domain",
}
TEXTS = {
    "demo:tumour": "Which cells of a new tumour resist? Trained on two other studies, with calibrated scores and sets.",
    "demo:studies": "How well do two baselines predict whole samples that they have not seen?",
    "demo:foreign": "Cells of another kind: the out-of-domain flag says not to trust the scores.",
}
_OWNER = "demo"


def order(server: Server) -> None:
    """Put the demo jobs in line at the first start; later starts find them."""
    with session(server.engine) as db:
        known = {j.request.get("query") for j in db.scalars(select(Job).where(Job.demo))}
        made = [
            new_job(server, _OWNER, request, TITLES[request["query"]], demo=True)
            for request in _requests() if request["query"] not in known
        ]  # fmt: skip
        db.add_all(made)
    for job in made:
        server.queues.put("jobs", job.id)


def listed(server: Server) -> list[dict[str, Any]]:
    """The demo results for the first page."""
    with session(server.engine) as db:
        found = {j.request.get("query"): j for j in db.scalars(select(Job).where(Job.demo))}
    return [
        {"id": found[k].id, "title": TITLES[k], "text": TEXTS[k], "state": found[k].state} for k in TITLES if k in found
    ]


def _requests() -> list[dict[str, Any]]:
    train = {"model": "pca", "head": "logistic", "groups": "sample", "ood": True, "calibrate": "sigmoid"}
    evaluate = {
        "models": ["pca"],
        "head": "logistic",
        "n_folds": 3,
        "split": "sample",
        "baselines": ["all_sensitive", "majority", "hvg"],
    }
    return [
        {"kind": "train_predict", "query": "demo:tumour", "reference": "demo:reference",
         "options": {**train, "conformal": 0.9}},
        {"kind": "benchmark", "query": "demo:studies", "options": evaluate},
        {"kind": "train_predict", "query": "demo:foreign", "reference": "demo:reference", "options": train},
    ]  # fmt: skip


def cells_of(name: str) -> Any:
    """Simulated cells of a demo.

    Parameters
    ----------
    name
        ``"demo:reference"``, or a key of :data:`TITLES`.
    """
    import scdrugmap as sd

    adata = sd.datasets.simulate(n_cells=1500, n_genes=800, n_studies=3, rng=11)
    studies = adata.obs["study"].astype(str)
    last = studies.unique()[-1]
    if name == "demo:reference":
        return adata[(studies != last).to_numpy()].copy()
    if name == "demo:studies":
        return adata[: 3 * (adata.n_obs // 3)].copy()
    tumour = adata[(studies == last).to_numpy()].copy()
    if name == "demo:tumour":
        del tumour.obs["response"]
        return tumour
    # Each gene's counts go to another gene: the marginal depth stays, the biology is of no tumour.
    import numpy as np

    foreign = tumour.copy()
    foreign.X = foreign.X[:, np.random.default_rng(3).permutation(foreign.n_vars)]
    del foreign.obs["response"]
    return foreign
