"""Files behind a DOI: address and digest from the provider (Zenodo, figshare, Dataverse), through pooch."""

from __future__ import annotations

from types import SimpleNamespace

from scdrugmap._errors import DownloadError
from scdrugmap.download.transfer import TIMEOUT, user_agent


def resolve(url: str) -> tuple[str, str | None]:
    """Ask the provider where a file is and what its digest is.

    Parameters
    ----------
    url
        ``doi:10.5281/zenodo.13350497/file.h5ad``.

    Returns
    -------
    The address and the digest in the notation of pooch (``md5:...``), or ``None`` if the provider gives none.

    Raises
    ------
    DownloadError
        If the DOI does not resolve or holds no such file.

    Examples
    --------
    >>> from scdrugmap.download.doi import resolve
    >>> resolve("doi:10.5281/zenodo.13350497/AissaBenevolenskaya2021.h5ad")  # doctest: +SKIP
    """
    import requests
    from pooch import downloaders

    prefix, suffix, name = url.removeprefix("doi:").split("/", 2)
    try:
        repository = downloaders.doi_to_repository(
            f"{prefix}/{suffix}", headers={"User-Agent": user_agent()}, timeout=TIMEOUT
        )
        digests = SimpleNamespace(registry={})
        repository.populate_registry(digests)
        return repository.download_url(name), digests.registry.get(name)
    except (requests.RequestException, ValueError, KeyError, IndexError) as error:
        raise DownloadError(f"{url}: the provider could not be asked ({type(error).__name__}: {error}).") from error
