"""The generative model behind ``simulate``: the fixed effects, the plan of samples, and the draw of one block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._errors import InputError
from scdrugmap._keys import CLASSES, RESISTANT, SENSITIVE
from scdrugmap.datasets import _simulate_programmes as programmes
from scdrugmap.genes.table import packaged_table

#: Cells that are drawn at once; fixed, because the random stream is per block and must not depend on memory.
BLOCK = 2048

DEFAULT_CELL_TYPES = {"malignant": 0.75, "T cell": 0.12, "macrophage": 0.08, "fibroblast": 0.05}

#: Activity of the resistance programmes outside the first cell type.
BYSTANDER = 0.5


@dataclass(frozen=True)
class Parameters:
    """Every number of the model; see :func:`scdrugmap.datasets.simulate`."""

    n_studies: int
    n_patients: int
    n_samples_per_patient: int
    n_cells: int
    n_genes: int
    drugs: tuple[str, ...]
    cell_types: Mapping[str, float]
    resistant_fraction: tuple[float, ...]
    label_unit: str
    shared_effect: float
    private_effect: float
    heterogeneity: float
    study_effect: float
    batch_effect: float
    patient_effect: float
    depth: float
    dispersion: float
    dropout: float
    shared_controls: bool
    seed: int


@dataclass(frozen=True)
class Sample:
    """One sample: where it comes from, its label and its own random stream."""

    stream: int
    study: int
    patient: int
    batch: int
    name: str
    patient_name: str
    batch_name: str
    time_point: str
    resistant: bool
    n_cells: int
    measured_in: int
    control: bool


@dataclass(frozen=True)
class World:
    """The genes and every fixed effect on their log mean."""

    parameters: Parameters
    genes: pd.DataFrame
    base: np.ndarray
    study: np.ndarray
    batch: np.ndarray
    patient: np.ndarray
    cell_types: np.ndarray
    cycle: np.ndarray
    shared: np.ndarray
    private: np.ndarray
    samples: list[Sample] = field(default_factory=list)

    def truth(self) -> pd.DataFrame:
        """The genes of every programme with their log fold change."""
        symbols = self.genes["symbol"].to_numpy()
        parts = [("shared", "", self.shared), ("cell cycle", "", self.cycle)]
        parts += [("private", drug, self.private[i]) for i, drug in enumerate(self.parameters.drugs)]
        rows = [
            pd.DataFrame(
                {"programme": name, "drug": drug, "gene": symbols[effect != 0], "log_fold_change": effect[effect != 0]}
            )
            for name, drug, effect in parts
        ]
        return pd.concat(rows, ignore_index=True)


@dataclass(frozen=True)
class Block:
    """Some cells of one sample."""

    sample: Sample
    start: int
    counts: sparse.csr_matrix
    cell_type: np.ndarray
    resistant_state: np.ndarray
    protein: sparse.csr_matrix | None


def stream(seed: int, *key: int) -> np.random.Generator:
    """A generator of its own for one part of the model."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def build(p: Parameters) -> World:
    """Choose the genes, draw every fixed effect and plan the samples."""
    genes = _choose_genes(p)
    rng = stream(p.seed, 0)
    n = len(genes)
    index = {symbol: i for i, symbol in enumerate(genes["symbol"])}
    base = 1.2 * genes["expression"].to_numpy(float) + rng.normal(0, 0.7, n)
    base += 1.2 * genes["symbol"].str.startswith("MT-").to_numpy()
    cell_types = rng.normal(0, 0.15, (len(p.cell_types), n))
    for i, name in enumerate(p.cell_types):
        markers = [index[g] for g in programmes.CELL_TYPES.get(name, ()) if g in index]
        if not markers:
            markers = rng.choice(n, min(12, n), replace=False).tolist()
        cell_types[i, markers] += rng.uniform(1.5, 2.5, len(markers))
    cycle = np.zeros(n)
    dividing = [index[g] for g in programmes.CELL_CYCLE if g in index]
    cycle[dividing] = rng.uniform(0.8, 1.6, len(dividing))
    shared = np.zeros(n)
    for members, sign in ((programmes.SHARED_UP, 1.0), (programmes.SHARED_DOWN, -1.0)):
        where = [index[g] for g in members if g in index]
        shared[where] = sign * p.shared_effect * rng.uniform(0.5, 1.5, len(where))
    private = np.zeros((len(p.drugs), n))
    free = np.flatnonzero(shared == 0)
    for i, drug in enumerate(p.drugs):
        where = [index[g] for g in programmes.DRUGS.get(drug, ()) if g in index and shared[index[g]] == 0]
        if not where:
            where = rng.choice(free, min(20, len(free)), replace=False).tolist()
        signs = rng.choice([-1.0, 1.0], len(where))
        private[i, where] = signs * p.private_effect * rng.uniform(0.5, 1.5, len(where))
    return World(
        parameters=p,
        genes=genes,
        base=base,
        study=rng.normal(0, p.study_effect, (p.n_studies, n)),
        batch=rng.normal(0, p.batch_effect, (p.n_studies, 2, n)),
        patient=rng.normal(0, p.patient_effect, (p.n_studies, p.n_patients, n)),
        cell_types=cell_types,
        cycle=cycle,
        shared=shared,
        private=private,
        samples=_plan(p),
    )


def draw(world: World, *, protein: bool) -> Iterator[Block]:
    """Draw all cells, block by block; each block has its own random stream."""
    for sample in world.samples:
        for start in range(0, sample.n_cells, BLOCK):
            yield _draw_block(world, sample, start, min(BLOCK, sample.n_cells - start), protein=protein)


def _draw_block(world: World, sample: Sample, start: int, n: int, *, protein: bool) -> Block:
    """Draw ``n`` cells of a sample; the only dense arrays are of this block."""
    p = world.parameters
    rng = stream(p.seed, 2, sample.stream, start // BLOCK)
    weights = np.array(list(p.cell_types.values()))
    kind = rng.choice(len(weights), n, p=weights / weights.sum())
    state = np.where(rng.random(n) < p.heterogeneity, not sample.resistant, sample.resistant)
    activity = np.clip(state + rng.normal(0, 0.25, n), 0, None) * np.where(kind == 0, 1.0, BYSTANDER)
    dividing = rng.random(n) < np.where(kind == 0, 0.35, 0.05)
    size = rng.lognormal(0, 0.35, n) * p.depth * stream(p.seed, 3, sample.measured_in).lognormal(0, 0.3)

    drug = sample.measured_in % len(p.drugs)
    common = (
        world.base
        + world.study[sample.measured_in]
        + world.batch[sample.measured_in, sample.batch]
        + world.patient[sample.measured_in, sample.patient]
    )
    log_mean = (common + world.cell_types)[kind].astype(np.float32)
    log_mean += np.outer(activity, world.shared + world.private[drug]).astype(np.float32)
    log_mean += np.outer(dividing, world.cycle).astype(np.float32)
    mean = np.exp(log_mean - log_mean.max(axis=1, keepdims=True))
    share = mean / mean.sum(axis=1, keepdims=True)
    mean = share * size[:, None].astype(np.float32)
    noise = rng.standard_gamma(1 / p.dispersion, mean.shape, dtype=np.float32) * np.float32(p.dispersion)
    dense = rng.poisson(mean * noise)
    dense[rng.random(mean.shape, dtype=np.float32) < p.dropout * np.exp(-mean)] = 0
    return Block(
        sample=sample,
        start=start,
        counts=sparse.csr_matrix(dense.astype(np.float32)),
        cell_type=kind,
        resistant_state=state,
        protein=_draw_protein(world, share, sample, start) if protein else None,
    )


def _draw_protein(world: World, share: np.ndarray, sample: Sample, start: int) -> sparse.csr_matrix:
    """Draw antibody counts: a background and a part that grows with the logarithm of the gene's expression."""
    rng = stream(world.parameters.seed, 4, sample.stream, start // BLOCK)
    where = pd.Index(world.genes["symbol"]).get_indexer(pd.Index(list(surface_proteins(world).values())))
    mean = 2.0 + 25.0 * np.log1p(share[:, where].astype(float) * 1e4 / 5)
    mean *= rng.lognormal(0, 0.3, (len(mean), 1))
    return sparse.csr_matrix(rng.poisson(mean * rng.gamma(5.0, 0.2, mean.shape)).astype(np.float32))


def surface_proteins(world: World) -> dict[str, str]:
    """The surface proteins whose gene is simulated."""
    known = set(world.genes["symbol"])
    return {protein: gene for protein, gene in programmes.SURFACE.items() if gene in known}


def _choose_genes(p: Parameters) -> pd.DataFrame:
    """Take the genes of the programmes first, then the most expressed ones; in the order of the table."""
    table = packaged_table()
    table = table[(table["expression"] > 0) & ~table["symbol"].duplicated()]
    if p.n_genes > len(table):
        raise InputError("n_genes", p.n_genes, f"at most {len(table)} genes", f"pass n_genes={len(table)} or fewer.")
    groups: list[Sequence[str]] = [programmes.SHARED_UP, programmes.SHARED_DOWN, tuple(programmes.SURFACE.values())]
    groups += [programmes.DRUGS.get(drug, ()) for drug in p.drugs]
    groups += [programmes.CELL_TYPES.get(name, ()) for name in p.cell_types]
    groups.append(programmes.CELL_CYCLE)
    longest = max(map(len, groups))
    wanted = dict.fromkeys(group[i] for i in range(longest) for group in groups if i < len(group))
    first = [g for g in wanted if g in set(table["symbol"])][: p.n_genes // 2]
    rest = table[~table["symbol"].isin(first)].sort_values("expression", ascending=False, kind="stable")
    chosen = set(first) | set(rest["symbol"].iloc[: p.n_genes - len(first)])
    return table[table["symbol"].isin(chosen)].reset_index(drop=True)


def _plan(p: Parameters) -> list[Sample]:
    """Name the samples of every study, label them, and share the cells out."""
    rng = stream(p.seed, 1)
    per_study = p.n_patients * p.n_samples_per_patient
    cells = _share_out(p.n_cells, p.n_studies * per_study, rng)
    out: list[Sample] = []
    for study in range(p.n_studies):
        units = per_study if p.label_unit == "sample" else p.n_patients
        n_resistant = round(p.resistant_fraction[study] * units)
        n_resistant = min(max(n_resistant, 1), units - 1) if units > 1 else n_resistant
        resistant = rng.permutation(np.arange(units) < n_resistant)
        if p.shared_controls and resistant[0]:
            swap = int(np.flatnonzero(~resistant)[0])
            resistant[[0, swap]] = resistant[[swap, 0]]
        for patient in range(p.n_patients):
            for k in range(p.n_samples_per_patient):
                i = patient * p.n_samples_per_patient + k
                control = p.shared_controls and i == 0
                name, batch = f"study{study + 1}-p{patient + 1}", i % 2
                out.append(
                    Sample(
                        stream=0 if control else study * per_study + i,
                        study=study,
                        patient=patient,
                        batch=batch,
                        name="control" if control else f"{name}-s{k + 1}",
                        patient_name="control" if control else name,
                        batch_name=f"study{1 if control else study + 1}-b{batch + 1}",
                        time_point="pre" if k == 0 else "post",
                        resistant=bool(resistant[i if p.label_unit == "sample" else patient]),
                        n_cells=int(cells[0 if control else study * per_study + i]),
                        measured_in=0 if control else study,
                        control=control,
                    )
                )
    return out


def _share_out(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Split ``total`` cells over the samples, unevenly but with none empty."""
    sizes = 1 + rng.multinomial(total - parts, rng.dirichlet(np.full(parts, 12.0)))
    return sizes.astype(int)


def label(resistant: bool) -> str:
    """The label of a sample."""
    assert CLASSES == (RESISTANT, SENSITIVE)
    return RESISTANT if resistant else SENSITIVE
