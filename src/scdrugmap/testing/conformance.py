"""What every model has to hold, as independent checks that name themselves when they fail."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from scdrugmap._device import Engine
from scdrugmap._errors import InputError
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import FittedModel, GroupModel, Model, NetworkModel
from scdrugmap.testing.cells import example_cells

#: Largest difference between two ways of computing one embedding, relative to its largest value (float32).
TOLERANCE = 1e-5

Check = Callable[[Any, sparse.csr_matrix, Genes], None]


def check_model(
    model: Model | type[Model],
    X: sparse.csr_matrix | None = None,
    genes: Genes | None = None,
    *,
    report: Callable[[str], None] | None = print,
) -> None:
    """Run the conformance suite on a model; every check is reported as it begins.

    Parameters
    ----------
    model
        A model, or a class whose ``random`` builds a small one (network) or that is fitted here (baseline).
    X, genes
        Counts to use; by default :func:`scdrugmap.testing.example_cells`.
    report
        Receives one line per check, when it begins; ``None`` for silence.

    Raises
    ------
    AssertionError
        Naming the first rule that does not hold.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> from scdrugmap.models.pca import PCA
    >>> sd.testing.check_model(PCA(n_components=5), report=None)
    """
    if X is None or genes is None:
        X, genes = example_cells()
    rules = checks(model)
    for i, check in enumerate(rules, 1):
        if report is not None:
            rule = (check.__doc__ or "").partition("\n")[0]
            report(f"{i:2d} of {len(rules)}  {check.__name__}: {rule}")
        # Each check gets a model of its own, so that no check can spoil the next.
        check(build(model, X, genes), X, genes)


def build(model: Model | type[Model], X: sparse.csr_matrix, genes: Genes) -> Model:
    """Return a model that can embed: random weights for a network class, fitted for a baseline."""
    instance: Any = model
    if isinstance(model, type):
        instance = model.random(genes) if issubclass(model, NetworkModel) else model()
    if isinstance(instance, FittedModel):
        instance.fit(X, genes)
    return instance


def checks(model: Model | type[Model]) -> list[Check]:
    """Return the checks that apply to a model, for a parametrised test of one's own.

    Parameters
    ----------
    model
        A model or its class.

    Returns
    -------
    Functions of ``(model, X, genes)`` that raise ``AssertionError``.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> from scdrugmap.models.pca import PCA
    >>> [check.__name__ for check in sd.testing.checks(PCA)][:2]
    ['shape_and_type', 'deterministic']
    """
    cls = model if isinstance(model, type) else type(model)
    open_vocabulary = getattr(cls, "open_vocabulary", False)
    common: list[Check] = [shape_and_type, deterministic, independent_of_order, independent_of_gene_order]
    common += [
        *([] if open_vocabulary else [unaffected_by_foreign_genes]),
        sums_duplicate_genes,
        leaves_input_untouched,
    ]
    if issubclass(cls, FittedModel):
        streamed = [learns_block_by_block] if cls.streams else []
        return [*common, independent_of_neighbours, state_round_trip, *streamed, rejects_bad_values]
    network: list[Check] = [empty_cell, same_in_every_container, same_with_any_threads, same_in_blocks, resumes]
    network += [
        rejects_bad_values,
        *([] if open_vocabulary else [rejects_unknown_genes]),
        adapters_get_gradient,
        adapters_change_output,
        adapters_survive_saving,
    ]
    if issubclass(cls, GroupModel):
        return [*common, *network, independent_of_other_groups]
    return [*common, *network, independent_of_batch, independent_of_neighbours]


def embed(
    model: Model, X: Any, genes: Genes, *, batch_size: int | None = None, store: Path | None = None, **options: Any
) -> np.ndarray:
    """Embed with whatever kind of model it is."""
    if isinstance(model, FittedModel):
        return model.transform(sparse.csr_matrix(X), genes)
    assert isinstance(model, NetworkModel)
    engine = Engine("cpu", "float32", batch_size, progress=False, store=store)
    return np.asarray(embed_counts(model, CountSource(X), genes, engine, **options).values[:])


def assert_close(found: np.ndarray, expected: np.ndarray, rule: str) -> None:
    """Compare relative to the largest value; NaN must stand in the same places."""
    assert found.shape == expected.shape, f"{rule}: shape {found.shape} instead of {expected.shape}"
    assert np.array_equal(np.isnan(found), np.isnan(expected)), f"{rule}: NaN in other places"
    scale = max(float(np.nanmax(np.abs(expected), initial=0.0)), 1e-6)
    worst = float(np.nanmax(np.abs(found - expected), initial=0.0)) / scale
    assert worst <= TOLERANCE, f"{rule}: relative difference {worst:.2e}"


def shape_and_type(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """One float32 row of width ``dim`` per cell, finite, and cells differ."""
    values = embed(model, X, genes)
    assert values.shape == (X.shape[0], model.dim), f"shape {values.shape}, dim {model.dim}"
    assert values.dtype == np.float32, f"dtype {values.dtype}"
    assert np.isfinite(values).all(), "not finite"
    assert np.ptp(values, axis=0).max() > 0, "all cells have the same embedding"


def deterministic(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """Two calls give the same bytes."""
    assert np.array_equal(embed(model, X, genes), embed(model, X, genes)), "two calls differ"


def independent_of_batch(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """One cell at a time equals all at once."""
    assert_close(embed(model, X, genes, batch_size=1), embed(model, X, genes), "batch size")
    assert_close(embed(model, X, genes, batch_size=5), embed(model, X, genes), "batch size")


def independent_of_order(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """Shuffled cells give shuffled rows."""
    order = np.random.default_rng(1).permutation(X.shape[0])
    assert_close(embed(model, X[order], genes), embed(model, X, genes)[order], "order of cells")


def independent_of_neighbours(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """A cell alone, or beside a much longer one, keeps its embedding."""
    whole = embed(model, X, genes)
    assert_close(embed(model, X[3:4], genes), whole[3:4], "a cell alone")
    lengths = np.diff(X.indptr)
    pair = np.array([lengths.argmin(), lengths.argmax()])
    assert_close(embed(model, X[pair], genes), whole[pair], "a short cell beside a long one")


def independent_of_other_groups(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """Only the cells of its own group change a cell's embedding."""
    groups = np.arange(X.shape[0]) % 2
    both = embed(model, X, genes, context=groups)
    assert_close(embed(model, X[groups == 1], genes), both[groups == 1], "other groups")


def independent_of_gene_order(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """Shuffled gene columns change nothing."""
    order = np.random.default_rng(2).permutation(X.shape[1])
    assert_close(embed(model, X[:, order], take(genes, order)), embed(model, X, genes), "order of genes")


def unaffected_by_foreign_genes(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """Genes that the model does not know, and further genes without counts, change nothing."""
    n = X.shape[0]
    rng = np.random.default_rng(3)
    foreign = sparse.csr_matrix(rng.poisson(2.0, size=(n, 3)).astype(np.float32))
    extra = Genes.from_names([f"NOTAGENE{i}X" for i in range(3)], ensembl=[f"ENSG9{i:010d}" for i in range(3)])
    wide = sparse.hstack([foreign, X, sparse.csr_matrix((n, 3), dtype=np.float32)], format="csr")
    others = Genes.from_names([f"NOCOUNTS{i}X" for i in range(3)], ensembl=[f"ENSG8{i:010d}" for i in range(3)])
    assert_close(embed(model, wide, join(extra, genes, others)), embed(model, X, genes), "unknown genes")


def sums_duplicate_genes(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """Counts of one gene in two columns equal their sum in one."""
    half = sparse.lil_matrix(X.shape, dtype=np.float32)
    half[:, 1] = np.minimum(X[:, 1].toarray(), 1)
    rest = (X - half.tocsr()).tocsr()
    rest.eliminate_zeros()
    wide = sparse.hstack([rest, half.tocsr()[:, 1]], format="csr")
    assert_close(embed(model, wide, join(genes, take(genes, np.array([1])))), embed(model, X, genes), "duplicate genes")


def leaves_input_untouched(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """Neither values nor structure of the input change."""
    before = X.copy()
    embed(model, X, genes)
    assert np.array_equal(before.data, X.data), "values of the input changed"
    assert np.array_equal(before.indices, X.indices), "structure of the input changed"


def empty_cell(model: NetworkModel, X: sparse.csr_matrix, genes: Genes) -> None:
    """A cell without counts of known genes keeps its row, holds NaN there and leaves the others alone."""
    n = X.shape[0]
    blank = sparse.csr_matrix((2, X.shape[1]), dtype=X.dtype)
    foreign = sparse.csr_matrix(([3.0], ([n + 1], [0])), shape=(n + 2, 1), dtype=X.dtype)
    wide = sparse.hstack([sparse.vstack([X, blank]), foreign], format="csr")
    names = join(genes, Genes.from_names(["NOTAGENE0X"], ensembl=["ENSG90000000000"]))
    if model.open_vocabulary:
        wide, names = wide[:-1, :-1], genes
    # A group of their own: what they do to cells beside them is an option of some models.
    options = {"context": np.r_[np.zeros(n), np.ones(wide.shape[0] - n)]} if isinstance(model, GroupModel) else {}
    values = embed(model, wide, names, **options)
    assert values.shape == (wide.shape[0], model.dim), f"shape {values.shape} instead of one row per cell"
    assert_close(values[:n], embed(model, X, genes), "beside an empty cell")
    for row, what in zip(values[n:], ("no counts", "counts of unknown genes only"), strict=False):
        if model.embeds_empty_cells:
            assert np.isfinite(row).all(), f"a cell with {what} is not finite, and embeds_empty_cells is true"
        else:
            assert np.isnan(row).all(), f"a cell with {what} has values instead of NaN; mark it unusable in the tokens"


def same_in_every_container(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """CSC, dense, integer, float64, backed, zarr and dask inputs give one result."""
    import anndata as ad
    import dask.array as da
    import zarr

    expected = embed(model, X, genes)
    dense = X.toarray()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cells.h5ad"
        ad.AnnData(X).write_h5ad(file)
        backed = ad.read_h5ad(file, backed="r")
        inputs = {
            "csc": X.tocsc(),
            "csr_array": sparse.csr_array(X),
            "dense": dense,
            "int": X.astype(np.int32),
            "float64": X.astype(np.float64),
            "backed": backed.X,
            "zarr": zarr.array(dense, chunks=(7, dense.shape[1])),
            "dask": da.from_array(dense, chunks=(7, -1)),
        }
        for name, values in inputs.items():
            assert_close(embed(model, values, genes), expected, f"input as {name}")
        backed.file.close()


def same_with_any_threads(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """One thread and two give the same result."""
    before = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(embed(model, X, genes))
    finally:
        torch.set_num_threads(before)
    assert_close(results[1], results[0], "threads")


def same_in_blocks(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """Reading seven rows at a time equals reading all at once."""
    assert_close(embed(model, X, genes, block_size=7), embed(model, X, genes), "block size")


def resumes(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """A store that is opened again holds the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        first = embed(model, X, genes, block_size=7, store=store)
        assert_close(first, embed(model, X, genes), "on disk")
        assert np.array_equal(embed(model, X, genes, block_size=7, store=store), first), "a repeated call differs"


def state_round_trip(model: FittedModel, X: sparse.csr_matrix, genes: Genes) -> None:
    """A baseline that is rebuilt from its state gives the same bytes."""
    again = type(model).from_state(model.state(), **model.options.model_dump())
    assert np.array_equal(again.transform(X, genes), model.transform(X, genes)), "rebuilt from state"


def learns_block_by_block(model: FittedModel, X: sparse.csr_matrix, genes: Genes) -> None:
    """A baseline that reads rows where it needs them learns what it learns from a matrix."""
    fresh = [type(model)(recipe=model.recipe, **model.options.model_dump()) for _ in range(2)]
    states = [m.fit(rows, genes).state() for m, rows in zip(fresh, (X, CountSource(X)), strict=True)]
    assert states[0].keys() == states[1].keys(), "other parts when it is fitted block by block"
    for name, values in states[0].items():
        assert np.array_equal(values, states[1][name]), f"{name} differs when it is fitted block by block"


def rejects_bad_values(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """NaN, negative values and (where counts are needed) fractions raise."""
    for bad in (np.nan, -1.0, *([0.5] if model.card.needs_counts else [])):
        broken = X.astype(np.float64)
        broken.data[0] = bad
        try:
            embed(model, broken, genes)
        except InputError:
            continue
        raise AssertionError(f"the value {bad} was accepted")


def rejects_unknown_genes(model: Model, X: sparse.csr_matrix, genes: Genes) -> None:
    """Data without any known gene raises."""
    names = [f"NOTAGENE{i}X" for i in range(X.shape[1])]
    foreign = Genes.from_names(names, ensembl=[f"ENSG9{i:010d}" for i in range(X.shape[1])])
    try:
        embed(model, X, foreign)
    except InputError:
        return
    raise AssertionError("data without any known gene were accepted")


def adapters_get_gradient(model: NetworkModel, X: sparse.csr_matrix, genes: Genes) -> None:
    """Every LoRA adapter on the default targets receives a gradient."""
    network, batch = _adapted(model, X, genes)
    network.train()
    network(batch).square().sum().backward()
    silent = [
        name
        for name, p in network.named_parameters()
        if "lora_B" in name and (p.grad is None or not p.grad.abs().max() > 0)
    ]
    assert not silent, f"adapters without gradient: {silent[:3]}"


def adapters_change_output(model: NetworkModel, X: sparse.csr_matrix, genes: Genes) -> None:
    """After one step every single adapter changes the output in evaluation mode."""
    network, batch = _adapted(model, X, genes)
    network.eval()
    with torch.no_grad():
        base = network(batch)
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 1, generator=torch.Generator().manual_seed(0))
                assert (network(batch) - base).abs().max() > 0, f"{name} does not change the output"
                parameter.zero_()


def adapters_survive_saving(model: NetworkModel, X: sparse.csr_matrix, genes: Genes) -> None:
    """Adapters that are saved and loaded give the same output."""
    from peft import PeftModel

    network, batch = _adapted(model, X, genes)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        network.eval()
        expected = network(batch)
        with tempfile.TemporaryDirectory() as folder:
            network.save_pretrained(folder)
            loaded = PeftModel.from_pretrained(network.unload(), folder).eval()
        assert_close(loaded(batch).numpy(), expected.numpy(), "saved and loaded adapters")


def _adapted(model: NetworkModel, X: sparse.csr_matrix, genes: Genes) -> tuple[Any, dict[str, torch.Tensor]]:
    """The network with default adapters, and one batch."""
    from peft import LoraConfig, get_peft_model

    from scdrugmap.models.kit.counts import Counts

    assert model.card.lora_targets, "the card names no LoRA targets"
    alignment = model.align(genes)
    counts = Counts(alignment.apply(X), alignment.ids, alignment.genes, np.arange(X.shape[0]))
    batch = model.collate(model.tokenize(counts).take(np.arange(min(8, X.shape[0]))))
    config = LoraConfig(r=4, lora_alpha=4, target_modules=list(model.card.lora_targets), bias="none")
    return get_peft_model(model.network, config), batch


def take(genes: Genes, order: np.ndarray) -> Genes:
    """Return some genes in another order."""
    return Genes(genes.names[order], genes.symbols[order], genes.ensembl[order])


def join(*parts: Genes) -> Genes:
    """Put genes side by side."""
    return Genes(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("names", "symbols", "ensembl")))
