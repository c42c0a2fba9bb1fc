import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from prompting_endpoint import KEY, truthful, with_logprobs
from scipy import sparse

import scdrugmap as sd
from scdrugmap._errors import InputError, MissingKeyError, ScDrugMapWarning
from scdrugmap.prompting import EndpointError

pytestmark = pytest.mark.filterwarnings("ignore:The endpoint gave no log-prob")


@pytest.fixture
def adata(cells):
    X, genes, y = cells
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(len(y))])
    obs["response"] = pd.Categorical(np.where(y == 1, "sensitive", "resistant"))
    obs["drug"] = "gefitinib"
    obs["study"] = "GSE12345"
    out = ad.AnnData(sparse.csr_matrix(X), obs=obs, var=pd.DataFrame(index=genes))
    out.obsm["X_pca"] = X[:, :3].astype(np.float32)
    return out


@pytest.fixture
def arguments(endpoint, tmp_path):
    endpoint.script = lambda request, number: with_logprobs(truthful(request), 0.75)
    return {"strategy": "prompt", "base_url": endpoint.url, "cache": tmp_path / "cache", "backoff": 0.01, "rng": 0}


def test_answers_go_into_obs(adata, arguments, endpoint, tmp_path):
    before = adata.copy()
    assert sd.tl.predict_response(adata, model="gpt-4o-mini", **arguments) is None
    assert adata.obs["response_pred"].cat.categories.tolist() == ["resistant", "sensitive"]
    assert (adata.obs["response_pred"].astype(str) == before.obs["response"].astype(str)).all()
    assert adata.obs["response_score"].dtype == np.float32
    assert np.allclose(adata.obs["response_score"], np.where(before.obs["response"] == "sensitive", 0.75, 0.25))
    assert adata.obs["response_status"].unique().tolist() == ["answered"]
    assert (adata.obs["response"] == before.obs["response"]).all()
    assert (adata.X != before.X).nnz == 0
    record = adata.uns["response"]
    assert record["provenance"]["models"].tolist() == ["gpt-4o-mini-served"]
    assert record["provenance"]["usage"]["requests"] == 5
    text = endpoint.requests[0]["messages"][-1]["content"]
    assert "drug: gefitinib" in text
    assert "GSE12345" not in text
    adata.write_h5ad(tmp_path / "out.h5ad")
    assert KEY.encode() not in (tmp_path / "out.h5ad").read_bytes()
    assert ad.read_h5ad(tmp_path / "out.h5ad").uns["response"]["params"]["strategy"] == "prompt"


def test_failure_writes_nothing(adata, arguments, endpoint):
    endpoint.script = lambda request, number: (401, {}, {"error": {"message": "no"}})
    columns = list(adata.obs)
    with pytest.raises(EndpointError):
        sd.tl.predict_response(adata, **arguments)
    assert list(adata.obs) == columns
    assert "response" not in adata.uns


def test_missing_answers_are_missing(adata, arguments, endpoint):
    endpoint.script = lambda request, number: "I'm sorry, I cannot do that."
    with pytest.warns(ScDrugMapWarning, match="47 refused"):
        out = sd.tl.predict_response(adata, copy=True, key_added="asked", **arguments)
    assert out.obs["asked_pred"].isna().all()
    assert out.obs["asked_score"].isna().all()
    assert out.uns["asked"]["provenance"]["cells"] == {"refused": 47}
    assert "asked_pred" not in adata.obs


def test_examples_come_from_the_reference_and_are_named(adata, arguments, endpoint):
    query, reference = adata[:20].copy(), adata[20:].copy()
    del query.obs["response"]
    sd.tl.predict_response(query, reference=reference, n_shots=2, shots="nearest", shots_rep="X_pca", **arguments)
    names = query.uns["response"]["shots"]
    assert set(names) <= set(reference.obs_names)
    assert endpoint.requests[0]["messages"][-1]["content"].count("- label ") == 4
    with pytest.raises(InputError, match="at most 0"):
        sd.tl.predict_response(query, reference=adata[:20].copy(), n_shots=2, **arguments)


@pytest.mark.parametrize("model", [None, "GPT-4o-mini", "gpt4omini", "gpt-4o-mini"])
def test_spellings_of_the_card_reach_the_vendor_name(adata, arguments, endpoint, model):
    sd.tl.predict_response(adata, model=model, **arguments)
    assert {request["model"] for request in endpoint.requests} == {"gpt-4o-mini"}


def test_other_models_are_sent_as_they_are_written(adata, arguments, endpoint):
    sd.tl.predict_response(adata, model="Qwen/Qwen2.5-7B-Instruct", **arguments)
    assert endpoint.requests[0]["model"] == "Qwen/Qwen2.5-7B-Instruct"


def test_mudata_is_mirrored(adata, arguments):
    mdata = md.MuData({"rna": adata})
    sd.tl.predict_response(mdata, **arguments)
    assert (mdata.obs["rna:response_pred"].astype(str) == adata.obs["response"].astype(str)).all()


@pytest.mark.parametrize(
    ("wrong", "error", "word"),
    [
        ({"model": "scGPT"}, InputError, "chat model"),
        ({"context": ["response"]}, InputError, "answer"),
        ({"context": ["dose"]}, MissingKeyError, "dose"),
        ({"source_key": "file"}, MissingKeyError, "file"),
        ({"n_shots": 2}, InputError, "reference="),
        ({"examples": 3}, InputError, "reference="),
        ({"layer": "counts"}, MissingKeyError, "counts"),
        ({"colour": 3}, InputError, "colour"),
    ],
)
def test_bad_arguments_are_named(adata, arguments, endpoint, wrong, error, word):
    with pytest.raises(error, match=word):
        sd.tl.predict_response(adata, **arguments | wrong)
    assert not endpoint.requests
    assert "response" not in adata.uns


def test_nearest_needs_the_embedding(adata, arguments):
    with pytest.raises(MissingKeyError, match="shots_rep"):
        sd.tl.predict_response(adata[:20].copy(), reference=adata[20:].copy(), n_shots=1, shots="nearest", **arguments)


@pytest.mark.filterwarnings("ignore:47 of 47 cells")
def test_source_is_told_without_accession(adata, arguments, endpoint):
    sd.tl.predict_response(
        adata, template="scdrugmap", source_key="study", cells_per_prompt=47, max_repairs=0, **arguments
    )
    text = endpoint.requests[0]["messages"][-1]["content"]
    assert "undisclosed" in text
    assert "GSE12345" not in text
    assert "gefitinib" not in text
