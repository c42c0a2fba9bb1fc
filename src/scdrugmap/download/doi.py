"""Files behind a DOI: address and digest from the provider (Zenodo, figshare, Dataverse), through pooch."""

from __future__ import annotations

from types import SimpleNamespace

from scdrugmap._errors import DownloadError
from scdrugmap.download.transfer import CONNECT, user_agent, within


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

    from scdrugmap.settings import settings

    prefix, suffix, name = url.removeprefix("doi:").split("/", 2)
    timeout = (CONNECT, settings.download_window)

    def ask() -> tuple[str, str | None]:
        headers = {"User-Agent": user_agent()}
        repository = downloaders.doi_to_repository(f"{prefix}/{suffix}", headers=headers, timeout=timeout)
        digests = SimpleNamespace(registry={})
        repository.populate_registry(digests)
        return repository.download_url(name), digests.registry.get(name)

    try:
        # several requests, one after the other
        return within(4 * sum(timeout), ask)
    except (requests.RequestException, TimeoutError, ValueError, KeyError, IndexError) as error:
        raise DownloadError(f"{url}: the provider could not be asked ({type(error).__name__}: {error}).") from error
