"""``sd.tl.leakage_report``: the shell over the search for leaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scdrugmap import _anndata
from scdrugmap._keys import KEYS
from scdrugmap.evaluation.grid import inputs
from scdrugmap.evaluation.grid.contenders import Contender

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.evaluation.splits.leakage import LeakageReport


def leakage_report(
    adata: AnnData | MuData,
    *,
    label_key: str = KEYS.response,
    study_key: str = KEYS.study,
    sample_key: str = KEYS.sample,
    layer: str | None = None,
    mod: str = "rna",
) -> LeakageReport:
    """Look for ways in which labels leak between the two sides of a split.

    Labels given per sample, copies of cells, studies of one class, columns that determine the label, and embeddings in
    ``obsm`` that were fitted on all cells or mix cells of several samples.

    Parameters
    ----------
    adata
        Cells with labels; not changed.
    label_key, study_key, sample_key
        Columns of ``obs``; without a study or sample column, all cells are one study and each study is one sample.
    layer
        Layer with the counts that are compared; ``X`` if ``None``.
    mod
        Modality of a MuData.

    Returns
    -------
    LeakageReport
        Print it, or see ``.findings``, ``.leaks`` and ``.studies``.

    Raises
    ------
    MissingKeyError, InputError
        If the label column or layer is missing, or a label is not known.

    Examples
    --------
    >>> import numpy as np, anndata as ad, scdrugmap as sd
    >>> adata = ad.AnnData(np.random.default_rng(0).poisson(2, (40, 30)).astype("float32"))
    >>> adata.obs["sample"] = np.repeat(list("abcd"), 10)
    >>> adata.obs["response"] = np.repeat(["resistant", "sensitive"] * 2, 10)
    >>> sd.tl.leakage_report(adata).leaks
    ['labels of samples']
    """
    from scdrugmap.evaluation.splits.leakage import find_leaks

    data = _anndata.reading(adata, mod=mod)
    cells = inputs.read_cells(data, label_key=label_key, study_key=study_key, sample_key=sample_key, layer=layer)
    keys = {label_key, study_key, sample_key}
    columns = {
        str(name): column.to_numpy()
        for name, column in data.obs.items()
        if name not in keys
        and not str(name).startswith(KEYS.response)
        and str(column.dtype) in ("category", "object", "bool", "str", "string")
    }
    checked = [_representation(data, key) for key in data.obsm]
    return find_leaks(cells, columns, checked)


def _representation(adata: AnnData, key: str) -> tuple[str, str]:
    if getattr(adata.obsm[key], "ndim", 2) != 2:
        return key, ""
    contender: Contender = inputs.obsm_contender(adata, key, key, ())
    groups = inputs.group_column(contender, adata)
    if groups is not None and len(set(groups.tolist())) == 1:
        return key, "all cells form one group and see each other"
    return key, contender.note
