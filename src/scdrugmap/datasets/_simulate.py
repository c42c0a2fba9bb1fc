"""The simulator: studies of drug response whose truth is known."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._anndata import no_pull
from scdrugmap._errors import InputError
from scdrugmap._keys import CLASSES, KEYS
from scdrugmap._logging import progress
from scdrugmap._random import seed_of
from scdrugmap.datasets import _simulate_model as model
from scdrugmap.datasets._simulate_programmes import ORIGINS

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def simulate(
    *,
    n_studies: int = 3,
    n_patients: int = 4,
    n_samples_per_patient: int = 2,
    n_cells: int = 1440,
    n_genes: int = 1500,
    drugs: Sequence[str] = ("erlotinib", "paclitaxel", "bortezomib"),
    cell_types: Mapping[str, float] | None = None,
    resistant_fraction: float | Sequence[float] = 0.5,
    label_unit: Literal["sample", "patient"] = "sample",
    shared_effect: float = 1.2,
    private_effect: float = 0.8,
    heterogeneity: float = 0.1,
    study_effect: float = 0.3,
    batch_effect: float = 0.1,
    patient_effect: float = 0.1,
    depth: float = 2500.0,
    dispersion: float = 0.3,
    dropout: float = 0.2,
    shared_controls: bool = False,
    protein: bool = False,
    path: str | os.PathLike[str] | None = None,
    rng: int | np.random.Generator | None = None,
) -> AnnData | MuData:
    r"""Simulate single-cell studies of drug response, with real gene symbols and a known truth.

    Parameters
    ----------
    n_studies
        Number of studies. Study ``i`` uses drug ``i`` of ``drugs``, taken in turn.
    n_patients
        Patients per study.
    n_samples_per_patient
        Samples per patient: the first before treatment (``"pre"``), the others after (``"post"``).
    n_cells
        Cells in all, shared out unevenly over the samples; only about that many with ``shared_controls``.
    n_genes
        Genes; those of the programmes first, then the most expressed ones of the packaged table.
    drugs
        Names of the drugs. The private programme of a known drug consists of genes of its pathway, that of another
        name of random genes.
    cell_types
        Proportions of the cell types. The resistance programmes act fully on the first and weakly on the others.
        By default three quarters are malignant and the rest T cells, macrophages and fibroblasts.
    resistant_fraction
        Share of resistant samples, for all studies or for each one; each study keeps at least one sample of each
        label.
    label_unit
        Whether each sample, or each patient with all samples, gets a label.
    shared_effect
        Mean absolute log fold change of the genes that resistance to every drug moves.
    private_effect
        The same for the genes that resistance to one drug moves.
    heterogeneity
        Share of the cells of a sample whose state is the opposite of the sample's label.
    study_effect
        Standard deviation of the log fold change of every gene between studies.
    batch_effect
        The same between the two batches of a study.
    patient_effect
        The same between patients.
    depth
        Typical counts per cell.
    dispersion
        Dispersion of the negative binomial distribution: variance = mean + dispersion x mean squared.
    dropout
        Probability that a gene of very low mean is lost on top of the sampling.
    shared_controls
        Put the same sensitive sample, cell by cell, into every study, as studies that share their controls do; its
        sample and patient are called ``"control"``.
    protein
        Return a MuData with the modalities ``rna`` and ``prot`` (surface proteins).
    path
        Write an h5ad file block by block, so that memory does not grow with the counts, and return it backed.
    rng
        Seed or generator; ``None`` uses ``settings.seed``. The same seed gives the same bytes, in memory and on
        disk.

    Returns
    -------
    An AnnData with raw counts (CSR, float32) in ``X``, or a MuData with ``protein=True``.

    ``obs``
        ``response``, ``sample``, ``patient``, ``study``, ``batch``, ``drug``, ``tissue``, ``cancer_type``,
        ``time_point``, ``cell_type``; ``true_state`` is the state of the single cell, which no real study knows.
    ``var``
        Index of symbols; ``gene_symbol``, ``ensembl_id``.
    ``uns["simulation"]``
        Every parameter, the seed, and the truth: ``programmes``, a data frame of the genes that each programme moves
        and their log fold change.

    Raises
    ------
    InputError
        A number is out of range, or ``path`` cannot be used.

    Notes
    -----
    For a cell :math:`c` of type :math:`t` from patient :math:`p`, batch :math:`b` and study :math:`s` with drug
    :math:`d`, the log mean of gene :math:`g` is, up to a constant per cell,

    .. math::

        \eta_{cg} = \beta_g + \tau_{tg} + \sigma_{sg} + \delta_{bg} + \pi_{pg}
                     + z_c a_t (u_g + v_{dg}) + k_c w_g

    with the base level :math:`\beta` from the expression of the gene in tumour and blood cells, normal effects of
    study, batch and patient, the shared programme :math:`u`, the private one :math:`v_d`, the cell cycle
    :math:`w` of dividing cells (:math:`k_c = 1`), and the activity :math:`z_c`, which is near one in a resistant and
    near zero in a sensitive cell. The state of a cell is the label of its sample but for the share
    ``heterogeneity``. Counts are negative binomial with mean :math:`L_c \, \mathrm{softmax}(\eta_c)_g`, where the
    library size :math:`L_c` is log-normal around a depth of the study, and a count is lost with probability
    ``dropout`` :math:`\times e^{-\mu}`. Antibody counts are negative binomial around a background plus a term in
    the logarithm of the expression of the gene.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=200, n_genes=300, rng=0)
    >>> adata.shape
    (200, 300)
    >>> sorted(adata.obs["response"].cat.categories)
    ['resistant', 'sensitive']
    """
    parameters = model.Parameters(
        n_studies=n_studies,
        n_patients=n_patients,
        n_samples_per_patient=n_samples_per_patient,
        n_cells=n_cells,
        n_genes=n_genes,
        drugs=tuple(drugs) if not isinstance(drugs, str) else (drugs,),
        cell_types=dict(model.DEFAULT_CELL_TYPES if cell_types is None else cell_types),
        resistant_fraction=_per_study(resistant_fraction, n_studies),
        label_unit=label_unit,
        shared_effect=shared_effect,
        private_effect=private_effect,
        heterogeneity=heterogeneity,
        study_effect=study_effect,
        batch_effect=batch_effect,
        patient_effect=patient_effect,
        depth=depth,
        dispersion=dispersion,
        dropout=dropout,
        shared_controls=shared_controls,
        seed=seed_of(rng),
    )
    _check(parameters)
    target = None if path is None else _check_path(path, protein=protein)
    world = model.build(parameters)
    var = pd.DataFrame(
        {KEYS.gene_symbol: world.genes["symbol"].to_numpy(), KEYS.ensembl_id: world.genes["ensembl_id"].to_numpy()},
        index=pd.Index(world.genes["symbol"].to_numpy(), name=None),
    )
    uns = {"simulation": _record(world)}
    cells = _Cells(world)
    if target is not None:
        return _to_disk(target, cells, var, uns)
    return _in_memory(cells, var, uns, protein=protein)


class _Cells:
    """Draw the blocks once, and keep the small annotation of the cells that have gone by."""

    def __init__(self, world: model.World) -> None:
        self.world = world
        self.samples: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.types: list[np.ndarray] = []
        self.states: list[np.ndarray] = []
        self.proteins: list[sparse.csr_matrix] = []

    def counts(self, *, protein: bool = False) -> Iterator[sparse.csr_matrix]:
        order = {id(sample): i for i, sample in enumerate(self.world.samples)}
        total = sum(sample.n_cells for sample in self.world.samples)
        with progress(total, "simulating", "cell") as bar:
            for block in model.draw(self.world, protein=protein):
                n = block.counts.shape[0]
                self.samples.append(np.full(n, order[id(block.sample)], dtype=np.int32))
                self.positions.append(np.arange(block.start, block.start + n, dtype=np.int32))
                self.types.append(block.cell_type.astype(np.int8))
                self.states.append(block.resistant_state.astype(bool))
                if block.protein is not None:
                    self.proteins.append(block.protein)
                bar.update(n)
                yield block.counts

    def obs(self) -> pd.DataFrame:
        samples, p = self.world.samples, self.world.parameters
        which, position = np.concatenate(self.samples), np.concatenate(self.positions)

        def spread(values: list[str]) -> pd.Categorical:
            return pd.Categorical(values, categories=list(dict.fromkeys(values))).take(which)

        origins = [ORIGINS[s.study % len(ORIGINS)] for s in samples]
        prefix = np.array([f"study{s.study + 1}-{s.name}-" if s.control else f"{s.name}-" for s in samples])
        names = np.char.add(prefix[which], np.char.zfill((position + 1).astype(str), 6))
        columns = {
            KEYS.response: pd.Categorical([model.label(s.resistant) for s in samples], categories=CLASSES).take(which),
            KEYS.sample: spread([s.name for s in samples]),
            KEYS.patient: spread([s.patient_name for s in samples]),
            KEYS.study: spread([f"study{s.study + 1}" for s in samples]),
            KEYS.batch: spread([s.batch_name for s in samples]),
            KEYS.drug: spread([p.drugs[s.study % len(p.drugs)] for s in samples]),
            KEYS.tissue: spread([tissue for tissue, _ in origins]),
            KEYS.cancer_type: spread([cancer for _, cancer in origins]),
            KEYS.time_point: spread([s.time_point for s in samples]),
            "cell_type": pd.Categorical.from_codes(np.concatenate(self.types), categories=list(p.cell_types)),
            "true_state": pd.Categorical.from_codes(1 - np.concatenate(self.states).astype(np.int8), list(CLASSES)),
        }
        return pd.DataFrame(columns, index=pd.Index(names.astype(object)))


def _in_memory(cells: _Cells, var: pd.DataFrame, uns: dict[str, Any], *, protein: bool) -> AnnData | MuData:
    """Stack the blocks."""
    from anndata import AnnData

    counts = sparse.vstack(list(cells.counts(protein=protein)), format="csr", dtype=np.float32)
    rna = AnnData(sparse.csr_matrix(counts), obs=cells.obs(), var=var, uns=uns)
    if not protein:
        return rna
    import mudata

    names = model.surface_proteins(cells.world)
    prot_var = pd.DataFrame(
        {KEYS.gene_symbol: list(names.values())}, index=pd.Index([f"anti-{name}" for name in names])
    )
    prot = AnnData(
        sparse.csr_matrix(sparse.vstack(cells.proteins)), obs=pd.DataFrame(index=rna.obs_names), var=prot_var
    )
    with no_pull():
        mdata = mudata.MuData({"rna": rna, "prot": prot})
    mdata.pull_obs(mods=["rna"])
    return mdata


def _to_disk(path: Path, cells: _Cells, var: pd.DataFrame, uns: dict[str, Any]) -> AnnData:
    """Write the blocks as they come, and open the file."""
    import anndata

    from scdrugmap._disk_write import write_h5ad

    write_h5ad(path, cells.counts(), cells.obs, var, uns)
    return anndata.read_h5ad(path, backed="r")


def _record(world: model.World) -> dict[str, Any]:
    """Parameters and truth, in types that h5ad files hold."""
    record = asdict(world.parameters)
    record["drugs"] = np.array(record["drugs"], dtype=object)
    record["resistant_fraction"] = np.array(record["resistant_fraction"], dtype=float)
    types = record.pop("cell_types")
    record["cell_types"] = pd.DataFrame({"cell_type": list(types), "proportion": list(types.values())})
    record["cell_types"].index = record["cell_types"].index.astype(str)
    record["programmes"] = world.truth()
    record["programmes"].index = record["programmes"].index.astype(str)
    return record


def _per_study(value: float | Sequence[float], n_studies: int) -> tuple[float, ...]:
    """One share per study."""
    if isinstance(value, Sequence | np.ndarray):
        return tuple(float(v) for v in value)
    return (float(value),) * n_studies


def _check(p: model.Parameters) -> None:
    """Refuse numbers that the model has no meaning for."""
    for name in ("n_studies", "n_patients", "n_samples_per_patient", "n_cells", "n_genes"):
        if not isinstance(getattr(p, name), int | np.integer) or getattr(p, name) < 1:
            raise InputError(name, getattr(p, name), "a whole number of at least 1", f"pass {name}=1 or more.")
    samples = p.n_studies * p.n_patients * p.n_samples_per_patient
    if p.n_cells < samples:
        raise InputError("n_cells", p.n_cells, f"at least one cell for each of {samples} samples", "pass more cells.")
    if p.n_genes < 20:
        raise InputError("n_genes", p.n_genes, "at least 20 genes", "pass n_genes=1500.")
    if not p.drugs:
        raise InputError("drugs", "no name", "at least one drug", 'pass drugs=["erlotinib"].')
    if not p.cell_types or min(p.cell_types.values()) < 0 or sum(p.cell_types.values()) <= 0:
        raise InputError("cell_types", p.cell_types, "names with proportions above 0", 'pass {"malignant": 1.0}.')
    if len(p.resistant_fraction) != p.n_studies or not all(0 <= f <= 1 for f in p.resistant_fraction):
        raise InputError(
            "resistant_fraction", p.resistant_fraction, "a share from 0 to 1, or one per study", "pass 0.5."
        )
    if p.label_unit not in ("sample", "patient"):
        raise InputError("label_unit", p.label_unit, "'sample' or 'patient'", "pass label_unit='sample'.")
    units = p.n_patients * (p.n_samples_per_patient if p.label_unit == "sample" else 1)
    if p.shared_controls and units < 2:
        raise InputError("shared_controls", True, "two labelled units per study at least", "pass n_patients=2 or more.")
    for name in ("heterogeneity", "dropout"):
        if not 0 <= getattr(p, name) <= 1:
            raise InputError(name, getattr(p, name), "a share from 0 to 1", f"pass {name}=0.1.")
    for name in ("shared_effect", "private_effect", "study_effect", "batch_effect", "patient_effect"):
        if not 0 <= getattr(p, name) < 10:
            raise InputError(name, getattr(p, name), "a number from 0 to 10", f"pass {name}=0.3.")
    for name in ("depth", "dispersion"):
        if not 0 < getattr(p, name) < float("inf"):
            raise InputError(name, getattr(p, name), "a number above 0", f"leave {name} at its default.")


def _check_path(path: str | os.PathLike[str], *, protein: bool) -> Path:
    """Refuse a target that cannot be written, before anything is drawn."""
    target = Path(path).expanduser()
    if protein:
        raise InputError("path", str(path), "path=None together with protein=True", "leave out path or protein.")
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK) or target.is_dir():
        raise InputError(
            "path", str(path), "a file in a folder that exists and can be written", "make the folder, or use another."
        )
    return target
