import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import scdrugmap as sd
from scdrugmap._errors import InputError
from scdrugmap.datasets import _simulate_model
from scdrugmap.genes import packaged_table


@pytest.fixture(scope="module")
def adata():
    return sd.datasets.simulate(rng=0)


def log_normalised(adata):
    counts = adata.X.toarray()
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


def variable(matrix, n=500):
    return np.argsort(matrix.var(0))[-n:]


def equal(a, b):
    return a.shape == b.shape and all(
        np.array_equal(getattr(a, x), getattr(b, x)) for x in ("data", "indices", "indptr")
    )


def test_layout(adata):
    assert adata.shape == (1440, 1500)
    assert sparse.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.float32
    assert (adata.X.data >= 1).all()
    assert (adata.X.data == np.rint(adata.X.data)).all()
    wanted = ["response", "sample", "patient", "study", "batch", "drug", "tissue", "cancer_type", "time_point"]
    assert {*wanted, "cell_type"} <= set(adata.obs)
    assert list(adata.obs["response"].cat.categories) == ["resistant", "sensitive"]
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert (adata.obs.groupby("study", observed=True)["sample"].nunique() == 8).all()
    assert (adata.obs.groupby("study", observed=True)["response"].nunique() == 2).all()


def test_labels_belong_to_samples_and_samples_to_one_patient_and_study(adata):
    per_sample = adata.obs.groupby("sample", observed=True)[["response", "patient", "study", "batch", "drug"]].nunique()
    assert (per_sample == 1).all().all()


def test_genes_are_real(adata):
    table = packaged_table().set_index("symbol")["ensembl_id"]
    table = table[~table.index.duplicated()]
    assert (table.loc[adata.var["gene_symbol"]].to_numpy() == adata.var["ensembl_id"]).all()
    assert {"CDH1", "VIM", "ABCB1", "BCL2L1", "MKI67", "RPL3", "MT-CO1", "EGFR"} <= set(adata.var_names)


def test_same_seed_same_bytes_and_another_seed_other_bytes(adata):
    again = sd.datasets.simulate(rng=0)
    assert equal(adata.X, again.X)
    pd.testing.assert_frame_equal(adata.obs, again.obs)
    assert not equal(adata.X, sd.datasets.simulate(rng=1).X)
    a, b = (sd.datasets.simulate(n_cells=100, n_genes=100, rng=np.random.default_rng(5)) for _ in range(2))
    assert equal(a.X, b.X)


def test_global_seed_is_neither_used_nor_changed():
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    sd.datasets.simulate(n_cells=60, n_genes=100, rng=2)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_response_can_be_learned_across_studies_and_the_truth_bounds_it(adata):
    x, y = log_normalised(adata), (adata.obs["response"] == "sensitive").to_numpy()
    truth = adata.uns["simulation"]["programmes"]
    truth = truth[truth["programme"] == "shared"]
    shared = adata.var_names.get_indexer(truth["gene"])
    learned, known = [], []
    for study in adata.obs["study"].cat.categories:
        train = (adata.obs["study"] != study).to_numpy()
        genes = variable(x[train])
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(
            x[train][:, genes], y[train]
        )
        learned.append(roc_auc_score(y[~train], head.decision_function(x[~train][:, genes])))
        known.append(roc_auc_score(y[~train], -(x[~train][:, shared] @ truth["log_fold_change"].to_numpy())))
    assert min(learned) > 0.72
    assert 0.75 < np.mean(learned) < 0.95
    assert np.mean(learned) < np.mean(known) < 0.97


def test_without_effects_nothing_can_be_learned_across_studies():
    adata = sd.datasets.simulate(shared_effect=0, private_effect=0, n_patients=8, rng=0)
    x, y = log_normalised(adata), (adata.obs["response"] == "sensitive").to_numpy()
    scores = []
    for study in adata.obs["study"].cat.categories:
        train = (adata.obs["study"] != study).to_numpy()
        genes = variable(x[train])
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(
            x[train][:, genes], y[train]
        )
        scores.append(roc_auc_score(y[~train], head.decision_function(x[~train][:, genes])))
    assert 0.4 < np.mean(scores) < 0.6


def test_studies_differ_visibly_and_only_when_asked(adata):
    def same_study(adata):
        x = log_normalised(adata)
        x = PCA(20, random_state=0).fit_transform(x[:, variable(x)])
        near = NearestNeighbors(n_neighbors=11).fit(x).kneighbors(return_distance=False)[:, 1:]
        study = adata.obs["study"].cat.codes.to_numpy()
        return (study[near] == study[:, None]).mean()

    assert same_study(adata) > 0.9
    none = {"study_effect": 0, "patient_effect": 0, "batch_effect": 0, "private_effect": 0}
    assert same_study(sd.datasets.simulate(**none, rng=0)) < 0.7


def test_heterogeneity_is_the_share_of_cells_against_their_label():
    adata = sd.datasets.simulate(n_cells=4000, n_genes=50, heterogeneity=0.3, rng=0)
    against = (adata.obs["true_state"].astype(str) != adata.obs["response"].astype(str)).mean()
    assert 0.27 < against < 0.33
    pure = sd.datasets.simulate(n_cells=200, n_genes=50, heterogeneity=0, rng=0)
    assert (pure.obs["true_state"].astype(str) == pure.obs["response"].astype(str)).all()


def test_class_imbalance_per_study():
    adata = sd.datasets.simulate(n_cells=300, n_genes=50, n_patients=5, resistant_fraction=[0.1, 0.5, 0.8], rng=0)
    samples = adata.obs.drop_duplicates("sample")
    resistant = (samples["response"] == "resistant").groupby(samples["study"], observed=True).sum()
    assert resistant.tolist() == [1, 5, 8]


def test_patients_can_be_the_labelled_unit():
    adata = sd.datasets.simulate(n_cells=200, n_genes=50, label_unit="patient", rng=0)
    assert (adata.obs.groupby("patient", observed=True)["response"].nunique() == 1).all()


def test_shared_controls_are_the_same_cells_in_every_study():
    adata = sd.datasets.simulate(n_cells=400, n_genes=100, shared_controls=True, rng=0)
    controls = [
        adata[(adata.obs["sample"] == "control") & (adata.obs["study"] == s)] for s in ("study1", "study2", "study3")
    ]
    assert (controls[0].obs["response"] == "sensitive").all()
    assert controls[0].n_obs > 0
    for other in controls[1:]:
        assert equal(sparse.csr_matrix(controls[0].X), sparse.csr_matrix(other.X))
    assert adata.obs_names.is_unique


def test_depth_and_dropout_do_what_they_say():
    base = {"n_cells": 300, "n_genes": 300, "rng": 0}
    shallow, deep = (sd.datasets.simulate(depth=d, **base).X.sum(1).mean() for d in (500, 5000))
    assert 5 < deep / shallow < 12
    full, lossy = (sd.datasets.simulate(dropout=d, **base).X for d in (0, 0.9))
    assert lossy.nnz < 0.96 * full.nnz
    rare = np.asarray(full.mean(0)).ravel() < 0.5
    assert lossy[:, rare].nnz < 0.5 * full[:, rare].nnz


def test_variance_follows_the_negative_binomial():
    quiet = {
        "study_effect": 0,
        "batch_effect": 0,
        "patient_effect": 0,
        "shared_effect": 0,
        "private_effect": 0,
        "dropout": 0,
    }
    counts = {
        phi: sd.datasets.simulate(
            n_studies=1, n_cells=4000, n_genes=200, cell_types={"malignant": 1.0}, dispersion=phi, rng=0, **quiet
        ).X.toarray()
        for phi in (0.05, 0.8)
    }
    excess = {}
    for phi, x in counts.items():
        size = x.sum(1, keepdims=True)
        x = x / size * size.mean()
        mean, var = x.mean(0), x.var(0)
        high = mean > 10
        excess[phi] = np.median((var[high] - mean[high]) / mean[high] ** 2)
    assert excess[0.05] < 0.25
    assert 0.6 < excess[0.8] < 1.2


def test_disk_holds_the_same_bytes_as_memory(tmp_path):
    options = {"n_cells": 700, "n_genes": 200, "rng": 4}
    memory, disk = sd.datasets.simulate(**options), sd.datasets.simulate(**options, path=tmp_path / "a.h5ad")
    assert disk.isbacked
    loaded = disk.to_memory()
    disk.file.close()
    assert equal(memory.X, loaded.X)
    assert loaded.X.dtype == np.float32
    pd.testing.assert_frame_equal(memory.obs, loaded.obs)
    pd.testing.assert_frame_equal(memory.var, loaded.var)
    pd.testing.assert_frame_equal(memory.uns["simulation"]["programmes"], loaded.uns["simulation"]["programmes"])
    assert loaded.uns["simulation"]["seed"] == 4
    assert list(tmp_path.iterdir()) == [tmp_path / "a.h5ad"]


def test_no_block_on_the_way_to_disk_is_larger_than_the_block_size(tmp_path, monkeypatch):
    rows = []
    original = _simulate_model._draw_block

    def spy(world, sample, start, n, **options):
        rows.append(n)
        return original(world, sample, start, n, **options)

    monkeypatch.setattr(_simulate_model, "_draw_block", spy)
    disk = sd.datasets.simulate(
        n_studies=1, n_patients=1, n_cells=9000, n_genes=30, path=tmp_path / "big.h5ad", rng=0, resistant_fraction=0
    )
    disk.file.close()
    assert max(rows) == _simulate_model.BLOCK
    assert sum(rows) == 9000
    with h5py.File(tmp_path / "big.h5ad") as file:
        assert file["X/indptr"].shape == (9001,)
        assert file["X/indptr"][-1] == file["X/data"].shape[0]


def test_an_interrupted_run_leaves_no_file(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(_simulate_model, "_draw_block", broken)
    with pytest.raises(KeyboardInterrupt):
        sd.datasets.simulate(n_cells=100, n_genes=50, path=tmp_path / "a.h5ad")
    assert list(tmp_path.iterdir()) == []


def test_memory_object_survives_h5ad(tmp_path, adata):
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert again.uns["simulation"]["shared_effect"] == adata.uns["simulation"]["shared_effect"]
    assert list(again.uns["simulation"]["drugs"]) == ["erlotinib", "paclitaxel", "bortezomib"]


def test_protein_modality(tmp_path):
    options = {"n_cells": 600, "n_genes": 600, "rng": 0}
    mdata = sd.datasets.simulate(protein=True, **options)
    assert set(mdata.mod) == {"rna", "prot"}
    assert equal(mdata["rna"].X, sd.datasets.simulate(**options).X)
    prot = mdata["prot"]
    assert prot.n_vars >= 8
    assert (prot.obs_names == mdata["rna"].obs_names).all()
    t_cells = (mdata["rna"].obs["cell_type"] == "T cell").to_numpy()
    cd3 = prot[:, "anti-CD3"].X.toarray().ravel()
    assert np.median(cd3[t_cells]) > 2 * np.median(cd3[~t_cells])
    assert "rna:response" in mdata.obs


def test_unknown_drug_and_cell_type_get_programmes_of_their_own():
    adata = sd.datasets.simulate(n_cells=100, n_genes=200, drugs=["compound/7"], cell_types={"blob": 1.0}, rng=0)
    truth = adata.uns["simulation"]["programmes"]
    assert (truth["drug"] == "compound/7").sum() > 5
    assert adata.obs["cell_type"].unique().tolist() == ["blob"]


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"n_studies": 0}, "n_studies"),
        ({"n_cells": 3}, "n_cells"),
        ({"n_genes": 10**6}, "n_genes"),
        ({"n_genes": 3}, "n_genes"),
        ({"drugs": []}, "drugs"),
        ({"cell_types": {}}, "cell_types"),
        ({"resistant_fraction": 1.5}, "resistant_fraction"),
        ({"resistant_fraction": [0.5]}, "resistant_fraction"),
        ({"label_unit": "cell"}, "label_unit"),
        ({"heterogeneity": -1}, "heterogeneity"),
        ({"depth": 0}, "depth"),
        ({"rng": "x"}, "rng"),
        ({"path": "/no/such/folder/a.h5ad"}, "path"),
        ({"path": "a.h5ad", "protein": True}, "path"),
    ],
)
def test_bad_numbers_are_refused(options, argument):
    with pytest.raises(InputError) as error:
        sd.datasets.simulate(**options)
    assert error.value.argument == argument
    assert "Fix:" in str(error.value)
