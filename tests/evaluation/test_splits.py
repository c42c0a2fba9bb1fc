"""Splits keep groups and copies whole, give both sides both classes, and say why when they cannot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdrugmap._cohort import Cohort, encode
from scdrugmap._errors import InputError
from scdrugmap._keys import SAME_SAMPLE
from scdrugmap.evaluation.splits.cells import data_card, make_partition
from scdrugmap.evaluation.splits.folds import (
    assign_folds,
    blocks_of,
    cell_folds,
    class_counts,
    group_folds,
    leave_one_out,
    most_folds,
)

cohorts = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=14)


def unfold(sizes):
    y = np.concatenate([np.r_[np.zeros(a, int), np.ones(b, int)] for a, b in sizes])
    return y, np.repeat(np.arange(len(sizes)), [a + b for a, b in sizes])


@settings(max_examples=150, deadline=None)
@given(cohorts, st.integers(2, 10), st.integers(0, 3))
def test_group_folds_guarantees(sizes, k, seed):
    y, groups = unfold(sizes)
    rng = np.random.default_rng(seed)
    duplicates = np.where(rng.random(len(y)) < 0.1, 0, np.arange(1, len(y) + 1))
    folds, reason, _ = group_folds(y, groups, k, rng, duplicates=duplicates)
    assert bool(folds) != bool(reason)
    if folds:
        assert len(folds) <= k
        np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(len(y)))
    for train, test in folds:
        assert not np.intersect1d(train, test).size
        assert not np.intersect1d(groups[train], groups[test]).size
        assert not np.intersect1d(duplicates[train], duplicates[test]).size
        assert set(y[train]) == set(y[test]) == {0, 1}


@settings(max_examples=100, deadline=None)
@given(cohorts, st.integers(0, 3))
def test_most_folds_is_reached_and_cannot_be_passed(sizes, seed):
    y, groups = unfold(sizes)
    if not len(y):
        return
    counts = class_counts(y, np.unique(groups, return_inverse=True)[1])
    k = most_folds(counts)
    if k:
        fold = assign_folds(counts, k, np.random.default_rng(seed))
        per_fold = np.stack([counts[fold == f].sum(axis=0) for f in range(k)])
        assert (per_fold > 0).all()
    # Each fold needs a mixed block, or one block of either class: a fold more than that has to lack a class.
    has = counts > 0
    assert k <= has.sum(axis=0).min()
    with pytest.raises(ValueError, match="more folds"):
        assign_folds(counts, k + 1, np.random.default_rng(seed))


def test_folds_are_balanced():
    rng = np.random.default_rng(0)
    sizes = [(n, 0) if i % 3 else (0, n) for i, n in enumerate(rng.integers(20, 60, 60))]
    y, groups = unfold(sizes)
    folds, _, notes = group_folds(y, groups, 10, rng)
    assert len(folds) == 10
    assert notes == ()
    test_sizes = np.array([len(test) for _, test in folds])
    shares = np.array([y[test].mean() for _, test in folds])
    assert test_sizes.max() < 1.35 * test_sizes.mean()
    assert abs(shares - y.mean()).max() < 0.12


def test_reasons_name_the_shortage():
    rng = np.random.default_rng(0)
    y, groups = unfold([(5, 0), (5, 0), (0, 5)])
    folds, reason, _ = group_folds(y, groups, 10, rng)
    assert folds == []
    assert "samples with resistant cells: 2, with sensitive cells: 1" in reason
    assert "one class" in group_folds(np.ones(4, int), np.arange(4), 2, rng)[1]
    assert group_folds(np.empty(0, int), np.empty(0, int), 2, rng)[1] == "no labelled cells"
    assert "only one study: A" in leave_one_out(np.array([0, 1]), np.zeros(2, int), np.array(["A"]))[1]


def test_fewer_samples_give_fewer_folds_and_a_note():
    y, groups = unfold([(5, 0), (5, 0), (5, 0), (0, 5), (0, 5)])
    folds, _, notes = group_folds(y, groups, 10, np.random.default_rng(0))
    assert len(folds) == 2
    assert "2 folds instead of 10" in notes[0]


def test_groups_that_share_a_copy_are_one_block():
    np.testing.assert_array_equal(blocks_of(np.array([0, 1, 2, 2, 3]), np.array([9, 9, 8, 7, 7])), [0, 0, 1, 1, 1])
    y, groups = unfold([(3, 3)] * 4)
    duplicates = np.arange(len(y))
    duplicates[0] = duplicates[6]
    folds, _, notes = leave_one_out(y, groups, np.array(list("ABCD")), duplicates=duplicates)
    assert [name for name, *_ in folds] == ["A + B", "C", "D"]
    assert "2 studies merged into 1" in notes[0]


def test_leave_one_out_tests_every_cell_once_and_flags_one_class_training():
    y, groups = unfold([(4, 4), (4, 0)])
    folds, reason, _ = leave_one_out(y, groups, np.array(["A", "B"]))
    assert reason == ""
    assert folds[0][3].startswith("training cells: one class")
    assert folds[1][3] == ""
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, _, test, _ in folds])), np.arange(12))


def test_random_cells_stratified_with_copies_together():
    rng = np.random.default_rng(0)
    y = (rng.random(1000) < 0.2).astype(int)
    duplicates = np.arange(1000) // 2
    y = y[duplicates]
    for train, test in cell_folds(y, 10, rng, duplicates=duplicates)[0]:
        assert not np.intersect1d(duplicates[train], duplicates[test]).size
        assert abs(y[test].mean() - y.mean()) < 0.03
        assert abs(len(test) - 100) <= 4
    single, _, _ = cell_folds(y, 10, rng, test_size=0.2)
    assert len(single) == 1
    assert abs(len(single[0][1]) - 200) <= 2


def cells_of(sizes, study=None):
    y, groups = unfold(sizes)
    sample = np.array([f"s{g}" for g in groups], dtype=object)
    return Cohort(y, sample, np.array(["A"] * len(y) if study is None else study, dtype=object))


def test_partition_depends_on_seed_and_category_only():
    cells = cells_of([(5, 0), (0, 5)] * 6)
    rows = np.arange(60)
    kw = {"setting": "pooled", "split": "sample", "n_folds": 3}
    a, b, c = (make_partition(cells, rows, seed=s, **kw) for s in (1, 1, 2))
    assert a.hash == b.hash != c.hash
    assert a.hash != make_partition(cells, rows, seed=1, category="other", **kw).hash
    frame = a.to_frame()
    assert (frame.groupby("fold")["row"].nunique() == 60).all()
    assert frame[frame["side"] == "test"]["row"].is_unique


def test_a_torn_sample_is_an_error_unless_cells_are_split():
    cells = cells_of([(4, 4)] * 4)
    cells.columns["lane"] = np.tile(["x", "y"], 16)
    for setting in ("pooled", "cross"):
        with pytest.raises(InputError, match="on both sides"):
            make_partition(cells, np.arange(32), setting=setting, split="lane", n_folds=2)
    partition = make_partition(cells, np.arange(32), setting="pooled", split="cell", n_folds=2)
    assert SAME_SAMPLE in partition.notes


def test_cells_without_the_key_to_leave_out_take_no_part():
    cells = cells_of([(4, 4)] * 4)
    cells.columns["drug"] = np.repeat(np.array(["a", "b", None, "c"], dtype=object), 8)
    partition = make_partition(cells, np.arange(32), setting="cross", split="drug")
    assert [f.name for f in partition.folds] == ["a", "b", "c"]
    assert not np.intersect1d(np.concatenate([f.train for f in partition.folds]), np.arange(16, 24)).size


def test_labels():
    values = ["Sensitive", "resistant ", None, "unknown", np.nan]
    np.testing.assert_array_equal(encode(values), [1, 0, -1, -1, -1])
    with pytest.raises(InputError, match="partial"):
        encode(["partial", "sensitive"])


def test_data_card_counts():
    card = data_card(cells_of([(6, 0), (0, 4)]), [None]).iloc[0]
    assert (card["n_cells"], card["n_sensitive"], card["n_samples_resistant"]) == (10, 4, 1)
    assert card["floor_f1"] == pytest.approx(0.8 / 1.4)
