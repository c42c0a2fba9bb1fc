"""Make the picture of the README and of the first page: the demo's, on simulated studies whose truth is known.

python docs/make_picture.py docs/_static/result.png
"""

import sys
from pathlib import Path

import scdrugmap as sd
from scdrugmap.cli._picture import draw_demo


def main(path):
    adata = sd.datasets.simulate(n_cells=1200, n_genes=1000, rng=0)
    unseen = (adata.obs["study"] == adata.obs["study"].cat.categories[-1]).to_numpy()
    query = adata[unseen].copy()
    sd.tl.predict_response(query, model="pca", reference=adata[~unseen].copy(), groups="sample", head="logistic", rng=0)
    sd.tl.embed(query, "pca", key_added="map")
    result = sd.tl.benchmark(
        adata, models=["pca"], setting="cross", baselines=["majority", "hvg"], head="logistic", rng=0, progress=False
    )
    draw_demo(query, query.obsm["X_map"], result, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
