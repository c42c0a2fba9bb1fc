"""Gene sets: cores against independent oracles, GMT files, offline, and the shell."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import scdrugmap as sd
from scdrugmap import download
from scdrugmap._errors import InputError, MissingDependencyError, MissingKeyError, OfflineError, UnknownNameError
from scdrugmap.interpret.decoupled import decoupled
from scdrugmap.interpret.enrichment import enrich, jackknife, over_representation, running_sum, ulm
from scdrugmap.interpret.gene_sets import _omnipath, gene_sets


@pytest.fixture
def gmt(planted, tmp_path):
    """The genes that resistance raises and lowers, and random ones."""
    shared = planted.uns["simulation"]["programmes"].query("programme == 'shared'")
    rng = np.random.default_rng(0)
    sets = {
        "UP": shared.query("log_fold_change > 0")["gene"],
        "DOWN": shared.query("log_fold_change < 0")["gene"],
        **{f"RANDOM_{i}": rng.choice(planted.var_names, 20, replace=False) for i in range(4)},
    }
    path = tmp_path / "sets.gmt"
    path.write_text("".join("\t".join([name, "note", *genes]) + "\n" for name, genes in sets.items()))
    return path


def weights_of(rng, n_sets=4, n_genes=60):
    return sparse.csr_matrix(rng.normal(size=(n_sets, n_genes)) * (rng.random((n_sets, n_genes)) < 0.3))


def test_ulm_is_the_slope_of_a_regression(rng):
    W, Y = weights_of(rng), rng.normal(size=(3, 60))
    expected = [[(f := stats.linregress(w, y)).slope / f.stderr for w in W.toarray()] for y in Y]
    np.testing.assert_allclose(ulm(Y, W), expected, rtol=1e-8)
    np.testing.assert_allclose(ulm(sparse.csr_matrix(Y), W), expected, rtol=1e-8)


def test_ulm_is_that_of_decoupler(rng):
    dc = pytest.importorskip("decoupler")
    W, genes = weights_of(rng), [f"g{i}" for i in range(60)]
    data = pd.DataFrame(rng.normal(size=(3, 60)), columns=genes, index=list("abc"))
    found = W.tocoo()
    net = pd.DataFrame(
        {"source": [f"s{i}" for i in found.row], "target": [genes[j] for j in found.col], "weight": found.data}
    )
    scores, _ = dc.mt.ulm(data=data, net=net, tmin=1)
    np.testing.assert_allclose(ulm(data.to_numpy(), W), scores[[f"s{i}" for i in range(4)]], rtol=1e-5)


@pytest.mark.parametrize("method", ["mlm", "waggr"])
def test_other_methods_are_those_of_decoupler(rng, method):
    dc = pytest.importorskip("decoupler")
    W, genes = weights_of(rng), [f"g{i}" for i in range(60)]
    data = pd.DataFrame(rng.normal(size=(3, 60)), columns=genes, index=list("abc"))
    found = W.tocoo()
    net = pd.DataFrame(
        {"source": [f"s{i}" for i in found.row], "target": [genes[j] for j in found.col], "weight": found.data}
    )
    expected = getattr(dc.mt, method)(data=data, net=net, tmin=1, **({"times": 0} if method == "waggr" else {}))
    expected = expected[0] if isinstance(expected, tuple) else expected
    np.testing.assert_allclose(
        decoupled(data.to_numpy(), W, method), expected[[f"s{i}" for i in range(4)]], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("of", ["biomarkers", "cells"])
def test_a_method_of_decoupler_through_the_tool(planted, of, tmp_path):
    pytest.importorskip("decoupler")
    genes = list(planted.var_names)
    (tmp_path / "own.gmt").write_text("".join(f"s{i}\t\t" + "\t".join(genes[i::12]) + "\n" for i in range(9)))
    cells = planted.copy()
    sd.tl.biomarkers(cells, rng=0)
    tables = {}
    for method in ("ulm", "mlm"):
        sd.tl.pathways(cells, source=tmp_path / "own.gmt", of=of, method=method, rng=0)
        tables[method] = cells.uns["pathways"].set_index("set")["score"]
    assert stats.spearmanr(tables["ulm"], tables["mlm"][tables["ulm"].index]).statistic > 0.7
    assert not np.allclose(tables["ulm"], tables["mlm"][tables["ulm"].index])
    with pytest.raises(InputError, match="of='cells'"):
        sd.tl.pathways(cells, source=tmp_path / "own.gmt", of="cells", method="gsea")


def test_a_score_of_decoupler_does_not_depend_on_other_cells(rng):
    pytest.importorskip("decoupler")
    W = weights_of(rng)
    Y = sparse.random(300, 60, density=0.02, random_state=0, format="csr")
    whole = decoupled(Y, W, "waggr")
    for row in (0, 255, 299):
        np.testing.assert_allclose(decoupled(Y[row : row + 1], W, "waggr"), whole[row : row + 1], rtol=1e-6, atol=1e-9)
    # Every gene in one set: the sets add up to the constant.
    with pytest.raises(InputError, match="none is a sum of others"):
        decoupled(Y, sparse.csr_matrix(np.kron(np.eye(4), np.ones(15))), "mlm")


def test_without_decoupler_its_methods_say_what_to_install(planted, monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "decoupler", None)
    with pytest.raises(MissingDependencyError, match="interpret"):
        sd.tl.pathways(planted.copy(), source="resistance", of="cells", method="mlm", min_genes=1)


def test_over_representation_is_fishers_test(rng):
    statistic, W = rng.normal(size=60), weights_of(rng)
    score, p = over_representation(statistic, W, 12)
    top = np.argsort(-statistic)[:12]
    for i, row in enumerate(W.toarray() != 0):
        hit = row[top].sum()
        table = [[hit, row.sum() - hit], [12 - hit, 60 - row.sum() - 12 + hit]]
        assert p[i] == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue)
        assert np.isfinite(score[i])


def test_running_sum_is_that_of_its_definition(rng):
    statistic, W = rng.normal(size=60), weights_of(rng)
    order = np.argsort(-statistic)
    for found, row in zip(running_sum(statistic, W), W.toarray() != 0, strict=True):
        member, strength = row[order], np.abs(statistic[order])
        steps = np.where(member, strength / strength[member].sum(), -1 / (~member).sum())
        path = np.cumsum(steps)
        assert found == pytest.approx(path[np.argmax(np.abs(path))])


def test_p_values_of_random_sets_are_uniform(rng):
    W = sparse.csr_matrix((rng.random((400, 300)) < 0.1).astype(float))
    for method in ("ulm", "gsea"):
        p = enrich(rng.normal(size=300), W, method, rng, n=100).p
        assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_jackknife_of_a_mean_is_its_t_interval(rng):
    x = rng.normal(size=(7, 2))
    low, high = jackknife(x.mean(0), np.array([np.delete(x, i, axis=0).mean(0) for i in range(7)]))
    expected = stats.t.interval(0.95, 6, loc=x.mean(0), scale=stats.sem(x))
    np.testing.assert_allclose([low, high], expected)


def test_planted_programmes_come_out_of_every_ranking(planted, linear, gmt):
    cells = planted.copy()
    sd.tl.biomarkers(cells)
    sd.tl.attribute(cells, linear, rng=0)
    for of in ("biomarkers", "cells"):
        sd.tl.pathways(cells, source=gmt, of=of, rng=0)
        table = cells.uns["pathways"]
        assert table.columns.tolist() == ["set", "score", "low", "high", "p", "q", "n_genes"]
        score = table.set_index("set")["score"]
        assert score["UP"] > 0 > score["DOWN"]
        assert set(table["set"].head(2)) == {"UP", "DOWN"}
        assert (table["low"] <= table["score"]).all()
        assert (table["score"] <= table["high"]).all()
    assert cells.obsm["pathway_activity"].shape == (cells.n_obs, 6)
    sd.tl.pathways(cells, source=gmt, of="attribution", rng=0)
    assert cells.uns["pathways"]["score"].notna().all()


def test_p_values_shuffle_samples_where_there_are_enough(planted, gmt):
    cells = planted.copy()
    sd.tl.biomarkers(cells)
    sd.tl.pathways(cells, source=gmt, rng=0)
    record = cells.uns["pathways_record"]
    assert record["p_type"] == "sample permutation"
    assert len(record["sha256"]) == 64
    random = cells.uns["pathways"].set_index("set").loc[[f"RANDOM_{i}" for i in range(4)]]
    assert (random["p"] > 0.001).all()


def test_few_samples_are_told(small, gmt):
    cells = small.copy()
    with pytest.warns(UserWarning):
        sd.tl.biomarkers(cells, min_cells=1)
    with pytest.warns(UserWarning, match="too few samples"):
        sd.tl.pathways(cells, source=gmt, min_genes=2)
    assert cells.uns["pathways_record"]["p_type"] == "gene permutation"


def test_the_own_list_is_packaged():
    table = gene_sets("resistance").table
    assert set(table["weight"]) == {1.0, -1.0}
    assert {"EGFR", "ABCB1", "BCL2", "SLFN11", "B2M"} <= set(table["gene"])


@pytest.mark.parametrize("source", ["hallmark", "progeny", "collectri"])
def test_sources_are_registered_with_licence_and_refused_offline(source, planted, monkeypatch):
    entry = download.find("datasets", f"gene-sets-{source}")
    assert entry.licence
    assert entry.manual
    monkeypatch.setattr(sd.settings, "offline", True)
    cells = planted.copy()
    sd.tl.biomarkers(cells)
    with pytest.raises(OfflineError, match=r"GMT file"):
        sd.tl.pathways(cells, source=source)
    assert "pathways" not in cells.uns


def test_a_fetched_source_is_read_with_its_digest(planted, gmt, tmp_path, monkeypatch):
    monkeypatch.setattr(sd.settings, "offline", True)
    monkeypatch.setattr(sd.settings, "cache_dir", tmp_path / "cache")
    named = tmp_path / "h.all.v2024.1.Hs.symbols.gmt"
    named.write_bytes(gmt.read_bytes())
    download.register_local("datasets", "gene-sets-hallmark", named)
    cells = planted.copy()
    sd.tl.biomarkers(cells)
    sd.tl.pathways(cells, source="hallmark", rng=0)
    record = cells.uns["pathways_record"]
    assert record["licence"] == "CC BY 4.0"
    assert record["version"] == "2024.1.Hs"
    assert record["sha256"] == __import__("hashlib").sha256(gmt.read_bytes()).hexdigest()


def test_tables_of_omnipath_are_read():
    long = pd.DataFrame(
        [(r, g, k, v) for r, g, w, p in ((1, "A", "2.5", "0.1"), (2, "B", "-1", "0.01"))
         for k, v in (("pathway", "EGFR"), ("weight", w), ("p_value", p))],
        columns=["record_id", "genesymbol", "label", "value"],
    )  # fmt: skip
    table = _omnipath(long, "progeny").set_index("gene")
    assert table["weight"].to_dict() == {"A": 2.5, "B": -1.0}
    assert set(table["set"]) == {"EGFR"}
    frame = pd.DataFrame(
        {"source_genesymbol": ["TP53"] * 2, "target_genesymbol": ["A", "B"], "consensus_inhibition": [0, 1]}
    )
    assert _omnipath(frame, "collectri")["weight"].tolist() == [1, -1]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"of": "genes"}, UnknownNameError, "genes"),
        ({"of": "perturbation"}, MissingKeyError, "sd.tl.perturb"),
        ({"method": "zscore"}, UnknownNameError, "zscore"),
        ({"source": "keggg"}, UnknownNameError, "GMT"),
        ({"source": "absent.gmt"}, InputError, "absent.gmt"),
        ({"min_genes": 0}, InputError, "min_genes"),
        ({"source": "resistance", "min_genes": 1000}, InputError, "no set"),
    ],
)
def test_what_cannot_be_used_is_refused(planted, options, kind, words):
    cells = planted.copy()
    sd.tl.biomarkers(cells)
    with pytest.raises(kind, match=words):
        sd.tl.pathways(cells, **options)
    assert "pathways" not in cells.uns


@pytest.mark.parametrize("text", ["A\tonly two\n", "", "\n"])
def test_broken_gmt_files_are_refused(text, tmp_path):
    path = tmp_path / "broken.gmt"
    path.write_text(text)
    with pytest.raises(InputError):
        gene_sets(path)
