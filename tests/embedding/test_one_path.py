"""embed, train, predict and benchmark go one way to an embedding, and take one that lies there only by its content."""

from __future__ import annotations

import inspect
from typing import ClassVar

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scdrugmap as sd
from scdrugmap._device import Engine
from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.models import registry
from scdrugmap.models.base import FittedModel
from scdrugmap.models.card import ModelCard
from scdrugmap.models.cellplm import CellPLM
from scdrugmap.models.scvi import SCVI
from scdrugmap.models.tgpt import TGPT
from scdrugmap.spec import EmbedSpec
from scdrugmap.testing.cells import example_cells

torch.set_num_threads(1)
QUICK = {"head": "logistic", "rng": 0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Every test has a cache of its own."""
    monkeypatch.setattr(sd.settings, "cache_dir", tmp_path / "cache")
    monkeypatch.setattr(sd.settings, "device", "cpu")


@pytest.fixture
def adata():
    X, genes = example_cells(40)
    obs = pd.DataFrame(
        {
            "response": np.repeat(["sensitive", "resistant"] * 4, 5),
            "sample": np.repeat([f"s{i}" for i in range(8)], 5),
            "patient": np.repeat(["p0", "p1"], 20),
        },
        index=[f"c{i}" for i in range(40)],
    )
    return ad.AnnData(X, obs=obs, var=pd.DataFrame({"ensembl_id": genes.ensembl}, index=genes.symbols))


@pytest.fixture
def genes():
    return example_cells()[1]


@pytest.fixture
def forward(monkeypatch):
    """Count forward passes of a model."""

    def watch(model):
        calls, original = [], model.network.forward
        monkeypatch.setattr(model.network, "forward", lambda batch: calls.append(1) or original(batch))
        return calls

    return watch


def fresh(model, adata):
    """The embedding by the core alone, without any cache."""
    names = registry_genes(adata)
    return np.asarray(embed_counts(model, CountSource(adata.X), names, Engine("cpu", progress=False)).values)


def registry_genes(adata):
    from scdrugmap import _anndata

    return _anndata.gene_ids(adata)


def shuffled(adata):
    """The same object with the counts of its cells in another order."""
    other = adata.copy()
    other.X = adata.X[::-1].tocsr()
    return other


# Reuse by content


def test_other_context_is_another_embedding(adata, genes):
    model = CellPLM.random(genes)
    counts = []
    for column in ("sample", "patient"):
        sd.tl.embed(adata, model, context=column, key_added=column)
        counts.append(adata.uns[column]["provenance"]["work"]["n_cached"])
    assert counts == [0, 0]
    assert adata.uns["sample"]["provenance"]["content"] != adata.uns["patient"]["provenance"]["content"]
    assert not np.allclose(adata.obsm["X_sample"], adata.obsm["X_patient"])
    sd.tl.embed(adata, model, context="sample", key_added="sample")
    assert adata.uns["sample"]["provenance"]["work"]["n_cached"] == adata.n_obs


def test_embedding_of_other_counts_is_not_used(adata, genes):
    model = TGPT.random(genes)
    sd.tl.embed(adata, model)
    predictor = sd.tl.train(adata, model, **QUICK)
    old = adata.obsm["X_tgpt"].copy()
    np.testing.assert_array_equal(predictor.features(adata), old)
    adata.X = shuffled(adata).X
    expected = fresh(model, adata)
    assert not np.allclose(expected, old)
    np.testing.assert_array_equal(predictor.features(adata), expected)
    again = sd.tl.train(adata, model, **QUICK)
    reference = shuffled(adata)
    reference.X = adata.X
    np.testing.assert_array_equal(
        again.predict(adata)["score"], sd.tl.train(reference, model, **QUICK).predict(reference)["score"]
    )
    np.testing.assert_array_equal(adata.obsm["X_tgpt"], old)  # what the user wrote stays


def test_embedding_of_other_options_is_not_used(adata, genes):
    short, model = TGPT.random(genes, max_length=4), TGPT.random(genes)
    sd.tl.embed(adata, short)
    assert not np.allclose(adata.obsm["X_tgpt"], fresh(model, adata))
    np.testing.assert_array_equal(sd.tl.train(adata, model, **QUICK).features(adata), fresh(model, adata))


def test_embedding_of_another_precision_is_not_used(adata, genes):
    model = TGPT.random(genes)
    sd.tl.embed(adata, model, precision="bfloat16")
    predictor = sd.tl.train(adata, model, precision="float32", **QUICK)
    np.testing.assert_array_equal(predictor.features(adata, precision="float32"), fresh(model, adata))


def test_embedding_without_a_key_is_not_used(adata, genes):
    model = TGPT.random(genes)
    sd.tl.embed(adata, model)
    del adata.uns["tgpt"]["provenance"]["content"]
    adata.obsm["X_tgpt"] = np.zeros_like(adata.obsm["X_tgpt"])
    np.testing.assert_array_equal(sd.tl.train(adata, model, **QUICK).features(adata), fresh(model, adata))


def test_gene_coverage_is_checked_beside_an_embedding(adata, genes):
    model = TGPT.random(genes)
    predictor = sd.tl.train(adata, model, **QUICK)
    part = adata[:, : adata.n_vars // 4].copy()
    sd.tl.embed(part, model)
    with pytest.warns(ScDrugMapWarning, match="of the .* genes that the predictor"):
        predictor.predict(part)


# No second forward pass


def test_repeated_train_and_predict_embed_once(adata, genes, forward):
    model = TGPT.random(genes)
    calls = forward(model)
    first = sd.tl.train(adata, model, **QUICK)
    n = len(calls)
    assert n > 0
    second = sd.tl.train(adata, model, **QUICK)
    a, b = first.predict(adata), second.predict(adata)
    sd.tl.embed(adata, model)
    sd.tl.predict_response(adata, first)
    assert len(calls) == n
    pd.testing.assert_frame_equal(a, b)


def test_without_the_cache_the_embedding_in_obsm_serves(adata, genes, forward, monkeypatch):
    monkeypatch.setattr(sd.settings, "embedding_cache", False)
    model = TGPT.random(genes)
    calls = forward(model)
    sd.tl.embed(adata, model)
    n = len(calls)
    adata.obs.loc[adata.obs_names[:3], "response"] = np.nan
    predictor = sd.tl.train(adata, model, **QUICK)
    predictor.predict(adata)
    assert len(calls) == n
    assert predictor.training["n_cells"] == 37
    other = shuffled(adata)
    predictor.predict(other)
    assert len(calls) > n


def test_rows_of_a_group_model_are_not_taken_from_a_larger_group(adata, genes):
    model = CellPLM.random(genes)
    sd.tl.embed(adata, model, context="patient")
    part = np.r_[0:10, 20:30]
    labelled = adata.copy()
    labelled.obs["response"] = np.where(np.isin(np.arange(40), part), labelled.obs["response"], None)
    alone = adata[part].copy()
    options = {"context": "patient", **QUICK}
    a = sd.tl.train(labelled, model, **options).predict(alone)["score"]
    b = sd.tl.train(alone, model, **options).predict(alone)["score"]
    np.testing.assert_array_equal(a, b)


def test_adapted_model_embeds_once_and_never_as_its_base(adata, genes, monkeypatch):
    model = TGPT.random(genes)
    sd.tl.embed(adata, model)
    predictor = sd.tl.train(adata, model, strategy="lora", lora_options={"epochs": 1, "lr": 1e-2}, rng=0)
    first = predictor.features(adata)
    assert not np.allclose(first, adata.obsm["X_tgpt"])
    adapted = predictor.representation.model
    monkeypatch.setattr(adapted.network, "forward", lambda *_: pytest.fail("embedded again"))
    np.testing.assert_array_equal(predictor.features(adata), first)


# One way to open a model


def test_option_of_a_fitted_model_is_refused(adata):
    model = registry.get("pca")(n_components=5)
    with pytest.raises(InputError, match="not fitted"):
        sd.tl.embed(adata, model)
    model.fit(adata[:20].X, registry_genes(adata))
    for call in (sd.tl.embed, sd.tl.train):
        with pytest.raises(InputError, match=r"loaded model with n_components.*name instead"):
            call(adata, model, n_components=3)
    assert not adata.obsm and not adata.uns
    sd.tl.embed(adata, model)
    record = adata.uns["scdrugmap_pca"]["provenance"]
    assert record["fitted_on"] != "all cells of this object" and record["options"]["n_components"] == 5
    sd.tl.embed(adata, "pca", n_components=5, key_added="own")
    assert adata.uns["own"]["provenance"]["fitted_on"] == "all cells of this object"


def test_axes_of_one_fitted_model_are_the_same_everywhere(adata, recwarn):
    train, query = adata[:20].copy(), adata[20:].copy()
    model = registry.get("pca")(n_components=5).fit(train.X, registry_genes(train))
    for part in (train, query):
        sd.tl.embed(part, model)
    sd.tl.train(train, use_rep="X_scdrugmap_pca", **QUICK).predict(query)
    assert not [w for w in recwarn if "same axes" in str(w.message)]


# The batch of a fitted model


class Batched(FittedModel):
    """Two numbers per cell; remembers the batches that it was fitted on."""

    card = ModelCard(
        name="Batched-test", kind="fitted", architecture="", year=2024, citation="", species=("any",), dim=2
    )
    uses_batch = True
    seen: ClassVar[list] = []

    def fit(self, X, genes, *, batch=None):
        self.seen.append(None if batch is None else np.unique(batch, return_inverse=True)[1].tolist())
        return self

    def transform(self, X, genes):
        return np.asarray(X[:, :2].toarray(), dtype=np.float32)

    @property
    def dim(self):
        return 2

    def state(self):
        return {}

    @classmethod
    def from_state(cls, state, **options):
        return cls(**options)


@pytest.fixture
def batched(monkeypatch):
    sd.models.register(Batched)
    monkeypatch.setattr(Batched, "seen", [])
    return Batched


def benchmarked(adata, **options):
    return sd.tl.benchmark(adata, models=["Batched-test"], baselines=[], head="logistic", n_jobs=1, rng=0, **options)


@pytest.mark.parametrize("column", ["batch", "sample", None])
def test_batch_is_the_same_in_embed_train_and_benchmark(adata, batched, column):
    adata.obs["study"] = "one"
    if column == "batch":
        adata.obs["batch"] = np.tile(["x", "y"], 20)
    expected = None if column is None else np.unique(adata.obs[column], return_inverse=True)[1]
    if column is None:
        del adata.obs["sample"]
    want = None if expected is None else expected.tolist()
    sd.tl.embed(adata, "Batched-test")
    assert batched.seen == [want]
    source = "one batch" if column is None else f"obs[{column!r}]"
    assert adata.uns["scdrugmap_batchedtest"]["provenance"]["batch"] == source
    predictor = sd.tl.train(adata, "Batched-test", **QUICK)
    assert batched.seen[1] == want and predictor.training["batch"] == source
    if column is None:
        return
    batched.seen.clear()
    result = benchmarked(adata, n_folds=2)
    sizes = sorted(len(np.unique(seen)) for seen in batched.seen if len(seen) > 16)
    n = {"batch": 2, "sample": 4}[column]
    assert sizes and set(sizes) == {n}, "samples (or batches) of the training fold, not its one study"
    assert result is not None


def test_units_depend_on_the_batches_only_where_the_model_does(adata, batched, tmp_path):
    """Another obs["batch"] makes a model with batches another contender, and leaves the others as they were."""
    computed = {}
    for name in ("Batched-test", "pca"):
        for value in ("x", "y"):
            adata.obs["batch"] = np.where(np.arange(40) < 20, value, "z")
            done = []
            sd.tl.benchmark(
                adata, models=[name], baselines=[], head="logistic", n_jobs=1, rng=0, n_folds=2, store=tmp_path / name,
                on_unit=lambda outcome, n, total, done=done: done.append(n),
            )  # fmt: skip
            computed[name, value] = done[0]
    assert computed["Batched-test", "y"] == 1
    assert computed["pca", "x"] == 1 and computed["pca", "y"] == 2


def test_scvi_uses_batches():
    assert SCVI.uses_batch and not registry.get("pca").uses_batch


# One run object


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_device_of_the_call_wins_over_the_settings(adata, genes, monkeypatch):
    monkeypatch.setattr(sd.settings, "device", "cuda")
    model = TGPT.random(genes)
    options = {"head_options": {"hidden": (4,), "epochs": 1}, "rng": 0}
    for strategy in ("frozen", "lora"):
        extra = {"lora_options": {"epochs": 1}} if strategy == "lora" else {}
        predictor = sd.tl.train(
            adata, model, strategy=strategy, device="cpu", conformal=0.8, n_folds=2, **options, **extra
        )
        assert predictor.predict(adata, device="cpu")["score"].notna().all()
        with pytest.raises(InputError, match="device"):
            predictor.predict(adata)


@pytest.mark.parametrize("size", [0, -1, True, 2.5])
def test_batch_size_is_checked_once_for_all(adata, genes, size):
    for call in (sd.tl.embed, sd.tl.train):
        with pytest.raises(InputError, match="batch_size"):
            call(adata, TGPT.random(genes), batch_size=size)


def test_few_signatures_carry_the_batch_size():
    """From sd.tl.embed to the forward pass: the shell and the two rules that divide a block."""
    from scdrugmap.embedding import cells, cluster, embed, runner
    from scdrugmap.embedding import open as opening
    from scdrugmap.models import base
    from scdrugmap.tl import _embed

    carrying = set()
    for module in (_embed, opening, cells, embed, runner, cluster, base):
        members = [m for m in vars(module).values() if getattr(m, "__module__", "") == module.__name__]
        functions = [m for m in members if inspect.isfunction(m)]
        functions += [f for m in members if inspect.isclass(m) for f in vars(m).values() if inspect.isfunction(f)]
        carrying |= {f.__qualname__ for f in functions if "batch_size" in inspect.signature(f).parameters}
    assert carrying == {"embed", "NetworkModel.plan", "bucket"}


# Names


def test_groups_of_embed_is_context_now(adata, genes):
    model = CellPLM.random(genes)
    with pytest.warns(ScDrugMapWarning, match="context="):
        sd.tl.embed(adata, model, groups="patient")
    assert adata.uns["cellplm"]["params"]["context"] == "patient"
    assert adata.uns["cellplm"]["provenance"]["context"] == "2 groups"
    with pytest.warns(FutureWarning, match="context"):
        spec = EmbedSpec(input="a.h5ad", output="b.h5ad", model=["CellPLM"], groups="patient")
    assert spec.context == "patient" and "groups" not in spec.model_dump()


def test_groups_false_splits_cells_and_says_so(adata):
    with pytest.warns(ScDrugMapWarning, match="one sample on both sides"):
        predictor = sd.tl.train(adata, "pca", groups=False, conformal=0.8, n_components=3, **QUICK)
    assert predictor.training["groups"] is None and predictor.training["n_groups"] == 0
    assert sd.tl.train(adata, "pca", n_components=3, **QUICK).training["groups"] == "sample"


def test_samples_of_two_studies_are_different_groups(adata):
    adata.obs["study"] = np.repeat(["a", "b"], 20)
    adata.obs["sample"] = np.tile(np.repeat(["s0", "s1", "s2", "s3"], 5), 2)
    assert sd.tl.train(adata, "pca", n_components=3, **QUICK).training["n_groups"] == 8
