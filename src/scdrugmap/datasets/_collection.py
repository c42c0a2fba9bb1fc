"""Several studies of the catalogue at once, fetched when they are asked for."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad

from scdrugmap._errors import (
    DownloadError,
    InputError,
    LicenceError,
    OutputError,
    ScDrugMapWarning,
    UnknownNameError,
)
from scdrugmap._files import place
from scdrugmap._keys import CLASSES, KEYS
from scdrugmap.datasets._catalogue import catalogue
from scdrugmap.datasets._fetch import Source, fetch

if TYPE_CHECKING:
    import pandas as pd


class Collection(Mapping[str, ad.AnnData]):
    """Studies by key; each is fetched when it is looked up and held by nobody but the caller.

    Parameters
    ----------
    table
        Rows of the catalogue.
    source, accept_licence
        As in :func:`scdrugmap.datasets.fetch`.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> len(sd.datasets.collection("primary", tissue="Cell line"))
    18
    """

    def __init__(self, table: pd.DataFrame, *, source: Source = "auto", accept_licence: bool = False) -> None:
        self.table, self.source, self.accept_licence = table, source, accept_licence

    def __getitem__(self, key: str) -> ad.AnnData:
        if key not in self.table.index:
            raise UnknownNameError("key", key, list(self.table.index))
        return fetch(key, source=self.source, accept_licence=self.accept_licence)

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.index)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"Collection of {len(self)} data sets: {', '.join(self)}"

    def concat(
        self, path: str | Path, *, join: Literal["inner", "outer"] = "inner", skip_missing: bool = False
    ) -> ad.AnnData:
        """Join all data sets into one h5ad file without holding them in memory together.

        Parameters
        ----------
        path
            The file.
        join
            Genes of all data sets, or genes of any.
        skip_missing
            Leave out what cannot be fetched, with a warning, instead of raising.

        Returns
        -------
        AnnData backed by ``path``. ``obs["dataset"]`` is the key, cells are called ``<key>:<name>``; ``obs["cell"]``
        tells copies of one cell apart from different cells.

        Raises
        ------
        DownloadError, LicenceError
            If a data set cannot be fetched and ``skip_missing`` is false.
        InputError
            If nothing is left to join.

        Examples
        --------
        >>> import scdrugmap as sd
        >>> sd.datasets.collection("primary", drug="ibrutinib").concat("ibrutinib.h5ad")  # doctest: +SKIP
        """
        from anndata.experimental import concat_on_disk

        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError("path", path, error) from None
        with tempfile.TemporaryDirectory(prefix=".concat-", dir=path.parent) as scratch:
            files: dict[str, str] = {}
            var: list[pd.DataFrame] = []
            for key in self:
                try:
                    adata = self[key]
                except (DownloadError, LicenceError) as error:
                    if not skip_missing:
                        raise
                    warnings.warn(f"{key} is left out: {error}", ScDrugMapWarning, stacklevel=2)
                    continue
                files[key] = str(Path(scratch) / f"{key}.h5ad")
                var.append(adata.var)
                for column in adata.obs.select_dtypes("category"):  # categories with gaps do not survive the join
                    adata.obs[column] = adata.obs[column].astype(object).where(adata.obs[column].notna(), "")
                adata.obs_names = [f"{key}:{name}" for name in adata.obs_names]
                adata.write_h5ad(files[key])
            if not files:
                raise InputError(
                    "collection", repr(self), "at least one data set that can be fetched", "see the warnings."
                )
            joined = str(Path(scratch) / "joined.h5ad")
            concat_on_disk(files, joined, join=join, label="dataset", fill_value=0)
            _restore_tables(Path(joined), var)
            place(Path(joined), path)
        return ad.read_h5ad(path, backed="r")


def _restore_tables(path: Path, var: list[pd.DataFrame]) -> None:
    """Give a joined file its gene table, and its text columns of ``obs`` as categories with gaps."""
    import h5py
    import pandas as pd
    from anndata.io import read_elem, write_elem

    with h5py.File(path, "r+") as file:
        obs, names = read_elem(file["obs"]), read_elem(file["var"]).index
        for column in obs.columns.difference(["cell"]):
            if not pd.api.types.is_numeric_dtype(obs[column]):
                texts = obs[column].astype(object)
                obs[column] = pd.Categorical(texts.where(texts.notna() & (texts != ""), None))
        obs[KEYS.response] = obs[KEYS.response].cat.set_categories(list(CLASSES))
        genes = pd.concat(var)
        genes = genes[~genes.index.duplicated()].reindex(names)
        for column in genes:
            if not pd.api.types.is_numeric_dtype(genes[column]):
                genes[column] = genes[column].astype(object).where(genes[column].notna(), "")
        for name, table in (("obs", obs), ("var", genes)):
            del file[name]
            write_elem(file, name, table)


def collection(
    name: Literal["primary", "external"] | None = None,
    *,
    source: Source = "auto",
    accept_licence: bool = False,
    **filters: Any,
) -> Collection:
    """Choose studies of the catalogue, to be fetched one by one or joined on disk.

    Parameters
    ----------
    name
        ``"primary"`` or ``"external"``; both if left out.
    source
        As in :func:`scdrugmap.datasets.fetch`.
    accept_licence
        As in :func:`scdrugmap.datasets.fetch`.
    **filters
        As in :func:`scdrugmap.datasets.catalogue`.

    Returns
    -------
    A mapping from key to AnnData that fetches on look-up; ``.table`` is its part of the catalogue, ``.concat(path)``
    joins all of it in one file.

    Raises
    ------
    UnknownNameError
        If a filter is no column or matches nothing.
    InputError
        If no data set fits all filters together.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> chosen = sd.datasets.collection("primary", tissue="Cell line", drug_class="BRAF inhibitor")
    >>> list(chosen)
    ['GSE108397', 'GSE164897_Vem', 'GSE164897_VemCob', 'GSE164897_VemTra']
    """
    if name is not None:
        filters["collection"] = name
    table = catalogue(**filters)
    if table.empty:
        raise InputError("filters", filters, "at least one data set", "loosen one of them; see catalogue().")
    return Collection(table, source=source, accept_licence=accept_licence)
