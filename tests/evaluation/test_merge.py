"""Results of several stores as one, against a single run of everything and against counting by hand."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdrugmap as sd
from scdrugmap._errors import InputError
from scdrugmap.evaluation.result.merge import merge_results
from scdrugmap.evaluation.result.site import export_site


def cells(seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    adata = ad.AnnData(rng.poisson(1, (120, 20)).astype("float32"))
    adata.obs_names = [f"{seed}-{i}" for i in range(120)]
    adata.obs["sample"] = np.repeat([f"s{i}" for i in range(12)], 10)
    adata.obs["study"] = np.repeat(["a", "b", "c"], 40)
    adata.obs["tissue"] = np.repeat(["t<1>", "t2", "t2"], 40)
    adata.obs["response"] = np.repeat(["resistant", "sensitive"] * 6, 10)
    sample = np.repeat(rng.normal(size=(12, 6)), 10, axis=0)
    adata.obsm["X_one"] = sample + 0.1 * rng.normal(size=(120, 6))
    adata.obsm["X_two"] = rng.normal(size=(120, 3))
    return adata


def run(store, adata=None, models=("X_one",), **options):
    adata = cells() if adata is None else adata
    given = {"head": "logistic", "n_folds": 2, "baselines": ["all_sensitive"], "rng": 0, "progress": False}
    return sd.tl.benchmark(adata, models=list(models), store=store, **given | options)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labs")
    run(folder / "a", models=["X_one"])
    run(folder / "b", models=["X_two"], by=[None, "tissue"])
    run(folder / "both", models=["X_one", "X_two"], by=[None, "tissue"])
    return folder


def same(one, two) -> bool:
    frames = ("table", "predictions", "units", "cells", "data")
    return all(getattr(one, f).astype(str).equals(getattr(two, f).astype(str)) for f in frames)


def test_any_order_and_twice_is_once(stores, tmp_path):
    a, b = stores / "a", stores / "b"
    first = merge_results([a, b], tmp_path / "1")
    assert same(first, merge_results([b, a, b, a], tmp_path / "2"))
    merge_results([b], tmp_path / "3")
    assert same(first, merge_results([tmp_path / "3", a, tmp_path / "1"], tmp_path / "4"))
    assert same(first, sd.load_result(tmp_path / "1"))
    assert same(merge_results([a], tmp_path / "5"), merge_results([a, a], tmp_path / "6"))


def test_it_says_what_one_run_of_everything_says(stores, tmp_path):
    joined = merge_results([stores / "a", stores / "b"], tmp_path / "c").summary(n_resamples=50)
    whole = sd.load_result(stores / "both").summary(n_resamples=50)
    keys = ["model", "by", "category", "metric"]
    both = joined.merge(whole, on=keys)
    assert len(both) == len(joined) > 0
    for column in ("value", "ci_low", "ci_high", "floor"):
        np.testing.assert_allclose(both[f"{column}_x"], both[f"{column}_y"], equal_nan=True)


def test_a_benchmark_goes_on_in_the_joined_folder(stores, tmp_path):
    merge_results([stores / "a", stores / "b"], tmp_path / "c")
    result = run(tmp_path / "c", models=["X_one", "X_two"])
    assert result.info["n_resumed"] == len(result.units)


def test_units_of_other_cells_stay_apart(stores, tmp_path):
    run(tmp_path / "other", cells(1))
    joined = merge_results([stores / "a", tmp_path / "other"], tmp_path / "c")
    assert len(joined.cells) == 240
    assert joined.table.query("setting == 'pooled'")["category"].str.contains(r" \[data ").all()
    mine = joined.summary(metrics="f1", n_resamples=0).query("model == 'X_one'")["value"]
    alone = [sd.load_result(p).summary(metrics="f1", n_resamples=0) for p in (stores / "a", tmp_path / "other")]
    assert sorted(mine) == sorted(pd.concat(alone).query("model == 'X_one'")["value"])


def test_another_representation_of_one_name_stays_apart(stores, tmp_path):
    adata = cells()
    adata.obsm["X_one"] = adata.obsm["X_one"][:, ::-1] * 2
    run(tmp_path / "other", adata)
    joined = merge_results([stores / "a", tmp_path / "other"], tmp_path / "c")
    names = {m for m in joined.table["model"] if m.startswith("X_one")}
    assert len(names) == 2 and all(re.fullmatch(r"X_one \[[0-9a-f]{8}\]", n) for n in names)
    assert (joined.summary(metrics="f1", n_resamples=0)["n_folds"] == 2).all()


def test_different_numbers_for_one_unit_are_refused_by_name(stores, tmp_path):
    import shutil

    shutil.copytree(stores / "a", tmp_path / "altered")
    file = tmp_path / "altered" / "result" / "predictions.parquet"
    frame = pd.read_parquet(file)
    frame.loc[0, "score"] += 0.25
    frame.to_parquet(file, index=False)
    unit = sd.load_result(stores / "a").units["key"].iloc[int(frame.loc[0, "unit"])]
    with pytest.raises(InputError, match=unit):
        merge_results([stores / "a", tmp_path / "altered"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_foreign_folders_are_left_alone(stores, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="path"):
        merge_results([stores / "a"], tmp_path)
    with pytest.raises(InputError, match="path"):
        export_site(sd.load_result(stores / "a"), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError):
        merge_results([tmp_path], tmp_path / "c")


def test_the_site_loads_nothing_and_shows_the_leak(tmp_path):
    result = run(tmp_path / "s", split=["cell", "sample"], by="tissue")
    page = export_site(result, tmp_path / "site", n_resamples=20)
    text = page.read_text()
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", text)
    assert links and all((page.parent / link).is_file() for link in links)
    head = re.findall(r'<th scope="col">([^<]*)</th>', text.split("<h2>Size of the leak</h2>")[1].split("</table>")[0])
    assert head[:2] == ["by", "category"] and head[8] == "leak"
    assert "<script" not in text and "t&lt;1&gt;" in text and "t<1>" not in text
    leak = pd.read_csv(tmp_path / "site" / "leak.csv").query("model == 'X_one' and metric == 'auroc'")
    # Samples are recognised without an error, and say nothing about each other.
    assert len(leak) == 2 and (leak["random_cells"] > 0.95).all() and (leak["leak"] > 0.1).all()
    export_site(result, tmp_path / "site", n_resamples=20)


def test_on_the_command_line(stores, tmp_path):
    from typer.testing import CliRunner

    from scdrugmap.cli._app import app

    def call(*arguments):
        return CliRunner().invoke(app, ["results", *map(str, arguments)])

    assert call("merge", stores / "a", stores / "b", "-o", tmp_path / "c").exit_code == 0
    assert call("export", tmp_path / "c", "-o", tmp_path / "site").exit_code == 0
    assert (tmp_path / "site" / "index.html").is_file()
    assert call("merge", tmp_path / "absent", "-o", tmp_path / "d").exit_code == 3
