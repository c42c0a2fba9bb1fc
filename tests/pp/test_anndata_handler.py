import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scdrugmap import _anndata
from scdrugmap._errors import InputError, InputTypeError, MissingKeyError


@pytest.fixture
def adata():
    X = sparse.random(6, 4, density=0.5, format="csr", random_state=0, dtype=np.float32)
    obs = pd.DataFrame({"a": range(6)}, index=[f"c{i}" for i in range(6)])
    return anndata.AnnData(X, obs=obs, var=pd.DataFrame(index=["TP53", "EGFR", "ENSG00000000003.14", "7157"]))


@pytest.fixture
def mdata(adata):
    prot = anndata.AnnData(np.ones((8, 2), np.float32), obs=pd.DataFrame(index=[f"c{i}" for i in range(1, 9)]))
    return mudata.MuData({"rna": adata.copy(), "prot": prot})


def test_resolve(adata, mdata):
    assert _anndata.resolve(adata) is adata
    assert _anndata.resolve(mdata) is mdata["rna"]
    assert _anndata.resolve(mdata, mod="prot") is mdata["prot"]
    with pytest.raises(MissingKeyError, match="'rna', 'prot'"):
        _anndata.resolve(mdata, mod="atac")
    for wrong in (None, "a.h5ad", np.ones((2, 2)), pd.DataFrame()):
        with pytest.raises(InputTypeError) as error:
            _anndata.resolve(wrong, argument="query")
        assert error.value.argument == "query"


def test_edit_in_place_and_on_a_copy(adata):
    work = _anndata.edit(adata)
    work.adata.obs["new"] = 1
    assert work.finish(["new"]) is None
    assert "new" in adata.obs
    work = _anndata.edit(adata, copy=True)
    work.adata.obs["newer"] = 1
    assert "newer" in work.finish().obs
    assert "newer" not in adata.obs


def test_edit_refuses_to_copy_a_file(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(InputError, match="copy"):
        _anndata.edit(backed, copy=True)
    backed.file.close()


def test_columns_of_a_modality_are_mirrored_by_cell(mdata):
    work = _anndata.edit(mdata)
    work.adata.obs["kind"] = pd.Categorical(list("ababab"), categories=["a", "b", "c"])
    work.adata.obs["score"] = np.arange(6, dtype=np.float32)
    work.finish(["kind", "score"])
    for name in mdata["rna"].obs_names:
        assert mdata.obs.loc[name, "rna:kind"] == mdata["rna"].obs.loc[name, "kind"]
        assert mdata.obs.loc[name, "rna:score"] == mdata["rna"].obs.loc[name, "score"]
    absent = ~mdata.obs_names.isin(mdata["rna"].obs_names)
    assert absent.sum() == 3
    assert mdata.obs.loc[absent, ["rna:kind", "rna:score"]].isna().all().all()
    assert list(mdata.obs["rna:kind"].cat.categories) == ["a", "b", "c"]


def test_copy_of_mudata_leaves_the_original(mdata):
    work = _anndata.edit(mdata, copy=True)
    work.adata.obs["x"] = 1
    out = work.finish(["x"])
    assert "rna:x" in out.obs
    assert "rna:x" not in mdata.obs
    assert "x" not in mdata["rna"].obs


def test_counts(adata):
    adata.layers["raw"] = adata.X.copy()
    assert _anndata.counts(adata) is adata.X
    assert _anndata.counts(adata, "raw") is adata.layers["raw"]
    with pytest.raises(MissingKeyError, match="'raw'"):
        _anndata.counts(adata, "nothing")
    del adata.X
    with pytest.raises(MissingKeyError, match="raw"):
        _anndata.counts(adata)


def test_gene_ids_from_names_and_columns(adata):
    genes = _anndata.gene_ids(adata)
    assert genes.symbols.tolist() == ["TP53", "EGFR", "", ""]
    assert genes.ensembl.tolist() == ["", "", "ENSG00000000003", ""]
    adata.var["gene_ids"] = ["ENSG00000141510", None, "", "ENSG00000000005.2"]
    adata.var["gene_symbol"] = pd.Categorical(["P53", None, "TSPAN6", None])
    genes = _anndata.gene_ids(adata)
    assert genes.symbols.tolist() == ["P53", "EGFR", "TSPAN6", ""]
    assert genes.ensembl.tolist() == ["ENSG00000141510", "", "ENSG00000000003", "ENSG00000000005"]


def test_missing_obs_column_lists_those_that_are_there(adata):
    with pytest.raises(MissingKeyError, match="'a'") as error:
        _anndata.obs_column(adata, "b", "groups")
    assert error.value.argument == "groups"


def test_missing_text_can_be_written():
    """The writers turn text with gaps into categories first; so does the probe."""
    obs = pd.DataFrame({"patient": ["a", None, np.nan]}, index=list("abc"))
    _anndata.writable(anndata.AnnData(np.ones((3, 1)), obs=obs))
