"""AnnData files of other collections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import anndata as ad

from scdrugmap._errors import InputError
from scdrugmap._keys import KEYS
from scdrugmap.datasets.loaders import _tidy


def read_h5ad(path: str | Path, *, response: str | None = None, facts: Mapping[str, str] | None = None) -> ad.AnnData:
    """Read an h5ad file into the tidy form.

    Parameters
    ----------
    path
        The file.
    response
        ``obs`` column with the response as text; ``obs["response"]`` if it is there.
    facts
        Values for ``obs`` columns that hold for every cell.

    Returns
    -------
    AnnData as of :func:`scdrugmap.datasets.loaders.read_text`; the file's own ``obs``, ``var``, ``obsm``, layers and
    ``uns`` are kept. Counts are taken from ``layers["counts"]`` where there is such a layer.

    Raises
    ------
    InputError
        If the file is no h5ad file or has no such column.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.datasets.loaders.read_h5ad("study.h5ad")  # doctest: +SKIP
    """
    path = Path(path)
    try:
        adata = ad.read_h5ad(path)
    except (OSError, KeyError) as error:
        raise InputError(
            "path", str(path), "a readable h5ad file", f"check that the download is complete ({error})."
        ) from error
    if response is None:
        response = KEYS.response if KEYS.response in adata.obs else None
    elif response not in adata.obs:
        raise InputError("response", response, f"one of {', '.join(adata.obs.columns)}", "name an obs column.")
    if "counts" in adata.layers:
        adata.X = adata.layers["counts"]
        del adata.layers["counts"]
    own = adata.obs
    facts = {k: v for k, v in (facts or {}).items() if k not in own}
    if KEYS.study not in own and KEYS.study not in facts:
        facts[KEYS.study] = _tidy.study_of(path) or path.stem
    adata.obs = _tidy.tidy_obs(own, facts, response=response, what=path.name)
    fresh = _tidy.tidy_var(adata.var_names)
    for column in fresh:
        if column not in adata.var:
            adata.var[column] = fresh[column].to_numpy()
    adata.var.index = fresh.index
    earlier = adata.uns.get(KEYS.provenance)
    adata.uns[KEYS.provenance] = _tidy.provenance(path, "h5ad")
    if earlier is not None:
        adata.uns[KEYS.provenance]["of_the_file"] = earlier
    return _tidy.finish(adata, path.name)
