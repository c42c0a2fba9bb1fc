"""One HTTP transfer: resumed where it stopped, retried with patience, suspicious of what it is given."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from scdrugmap._errors import DownloadError, IntegrityError, LicenceError
from scdrugmap._files import place, write_json
from scdrugmap._retry import Backoff, passing, retry_after

if TYPE_CHECKING:
    import requests

#: ``None`` shows a bar on a terminal, ``True``/``False`` force it, else an object like a tqdm bar.
Progress: TypeAlias = Any
_T = TypeVar("_T")

CHUNK = 1 << 20
#: Seconds in which a connection has to stand.
CONNECT = 15.0
#: Bytes of one try after which a transfer that stalls is worth another try at the same address.
WORTHWHILE = 1 << 20
#: Tries in a row that may bring no new byte.
PATIENCE = 5
#: The longest wait, in seconds, that a server may ask for.
LONGEST_WAIT = 120.0
#: Seconds before the second try, and the most.
BACKOFF = (1.0, 30.0)
DISK_MARGIN = 64 << 20


class _Retry(Exception):
    """A try failed in a way that another may not."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Stall(Exception):
    """The server sends nothing, or next to nothing."""


class _Pace:
    """Watches that bytes come at a minimum rate, over a window of time.

    Parameters
    ----------
    rate
        Bytes per second; 0 looks at nothing.
    window
        Seconds.
    """

    def __init__(self, rate: float, window: float) -> None:
        self.rate, self.window = rate, window
        self.start, self.count = time.monotonic(), 0

    def __call__(self, n_bytes: int) -> None:
        self.count += n_bytes
        seconds = time.monotonic() - self.start
        if seconds >= self.window:
            if self.count < self.rate * seconds:
                raise _Stall(f"{self.count / seconds:.0f} bytes per second over {seconds:.0f} seconds")
            self.start, self.count = time.monotonic(), 0


def within(seconds: float, function: Callable[[], _T]) -> _T:
    """Return what a call returns, or give it up after some seconds (a server can send headers for ever).

    Raises
    ------
    TimeoutError
        It took longer. The call goes on in a thread that nobody waits for.
    """
    done, box = threading.Event(), Queue[tuple[bool, Any]](1)

    def work() -> None:
        outcome: tuple[bool, Any]
        try:
            outcome = True, function()
        except BaseException as error:  # noqa: BLE001  handed to the caller
            outcome = False, error
        box.put(outcome)
        if done.is_set() and outcome[0] and hasattr(outcome[1], "close"):
            outcome[1].close()  # too late: nobody reads this answer

    threading.Thread(target=work, daemon=True).start()
    try:
        good, value = box.get(timeout=seconds)
    except Empty:
        done.set()
        raise TimeoutError(f"no answer within {seconds:.0f} seconds") from None
    if good:
        return value
    raise value


def user_agent() -> str:
    """Return the name under which requests are made."""
    import scdrugmap

    return f"scdrugmap/{scdrugmap.__version__} (https://github.com/scdrugmap/scdrugmap)"


class Transfer:
    """A downloader for pooch that resumes.

    Bytes are kept in ``part`` with the validators of the answer beside them. A later call continues with
    ``Range`` and ``If-Range``, so that two versions of a file are never spliced together; without a validator it
    starts again. Redirects are followed.

    Parameters
    ----------
    part
        File that holds the received bytes until the transfer is complete.
    size
        Bytes of the complete file, if known; another announced length is refused before any byte is fetched.
    headers
        Further request headers. ``requests`` drops ``Authorization`` on a redirect to another host.
    html
        Whether a HTML page is a valid answer.
    progress
        ``None``, a truth value, or an object with ``total``, ``update``, ``reset`` and ``close``.
    sleep
        Function that waits, given seconds.
    rate, window
        Bytes per second, over so many seconds, below which the address is given up; ``settings.download_rate`` and
        ``settings.download_window`` if ``None``.

    Raises
    ------
    DownloadError
        If the server refuses, sends a page instead of a file, keeps failing, or is silent or too slow.
    IntegrityError
        If the announced or received length is not ``size``.
    LicenceError
        If the server wants a login (401, 403).

    Examples
    --------
    >>> import pooch
    >>> from scdrugmap.download import Transfer
    >>> downloader = Transfer("model.part", size=1024)
    >>> pooch.retrieve("https://example.org/model", known_hash=None, downloader=downloader)  # doctest: +SKIP
    """

    def __init__(
        self,
        part: str | Path,
        *,
        size: int | None = None,
        headers: dict[str, str] | None = None,
        html: bool = False,
        progress: Progress = None,
        sleep: Callable[[float], None] = time.sleep,
        rate: float | None = None,
        window: float | None = None,
    ) -> None:
        from scdrugmap.settings import settings

        self.rate = settings.download_rate if rate is None else rate
        self.window = settings.download_window if window is None else window
        self.part, self.size, self.html, self.progress, self.sleep = Path(part), size, html, progress, sleep
        self.headers = {"User-Agent": user_agent(), "Accept-Encoding": "identity", **(headers or {})}
        self.meta = self.part.with_name(self.part.name + ".json")
        #: SHA-256 that the host itself gave for the file (Hugging Face does), if any.
        self.provider_sha256: str | None = None

    def __call__(self, url: str, output_file: str | os.PathLike[str], pooch: Any = None) -> None:
        """Fetch ``url`` into ``output_file``; the signature is pooch's."""
        self.fetch(url)
        place(self.part, Path(output_file))
        self.meta.unlink(missing_ok=True)

    def fetch(self, url: str) -> Path:
        """Fetch ``url`` into ``part``, in as many tries as it takes, and return it."""
        import requests
        import urllib3

        self.part.parent.mkdir(parents=True, exist_ok=True)
        fruitless, best, reason = 0, self._have(url), ""
        backoff = Backoff(*BACKOFF)
        with requests.Session() as session, _bar(self.progress, self.size, url) as bar:
            while fruitless < PATIENCE:
                wait: float | None = None
                try:
                    self._try(session, url, bar)
                    return self.part
                except _Retry as error:
                    reason, wait = str(error), error.wait
                except (_Stall, TimeoutError, requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError) as error:
                    reason = self._stalled(url, best, error)
                except (
                    requests.ConnectionError,
                    requests.Timeout,
                    requests.exceptions.ChunkedEncodingError,
                    urllib3.exceptions.HTTPError,
                ) as error:
                    reason = f"{type(error).__name__}: {error}"
                    if "timed out" in str(error).lower() and "connect" not in str(error).lower():
                        reason = self._stalled(url, best, error)
                except requests.RequestException as error:
                    raise DownloadError(f"{url}: {type(error).__name__}: {error}") from error
                have = self._have(url)
                fruitless, best = (0, have) if have > best else (fruitless + 1, best)
                if fruitless < PATIENCE:
                    self.sleep(backoff.seconds(fruitless) if wait is None else wait)
        raise DownloadError(
            f"{url}: gave up after {PATIENCE} tries without progress ({reason}). Fix: call again later, the "
            f"{best:,} bytes that arrived are kept and the transfer continues there."
        )

    def _stalled(self, url: str, before: int, error: Exception) -> str:
        """Give an address up that sends next to nothing; one that was good for a while gets another try."""
        have = self._have(url)
        if have - before >= WORTHWHILE:
            return f"stalled: {error}"
        raise DownloadError(
            f"{url}: the server is silent or too slow ({error}; the limit is {self.rate:,.0f} bytes per second over "
            f"{self.window:.0f} seconds). Fix: call again later, the {have:,} bytes that arrived are kept; or set "
            "SCDRUGMAP_DOWNLOAD_RATE (settings.download_rate) lower."
        ) from error

    def _have(self, url: str) -> int:
        """Bytes of this address that are already here; leftovers of another address are dropped."""
        if not self.part.exists():
            return 0
        if self._read_meta().get("url") != url:
            self._forget()
            return 0
        return self.part.stat().st_size

    def _read_meta(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.meta.read_text()))
        except (OSError, ValueError):
            return {}

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.meta.unlink(missing_ok=True)

    def _try(self, session: requests.Session, url: str, bar: Any) -> None:
        """Make one request and write what it brings."""
        have, headers = self._have(url), dict(self.headers)
        if have:
            validator = self._read_meta().get("validator")
            if not validator:
                self._forget()
                have = 0
            else:
                headers |= {"Range": f"bytes={have}-", "If-Range": validator}
        timeout = (CONNECT, self.window)
        ask = partial(session.get, url, headers=headers, stream=True, timeout=timeout)
        with within(CONNECT + self.window, ask) as answer:
            if answer.status_code == 416:
                return self._beyond_the_end(answer, have)
            self._refuse(answer, url)
            self.provider_sha256 = _linked_sha256(answer)
            start = _range_start(answer) if answer.status_code == 206 else 0
            if start not in (0, have):
                self._forget()
                raise _Retry(f"the server resumed at byte {start}, not {have}")
            total = self._total(answer, start, url)
            self._need_space(total, start)
            self._write(answer, url, start, total, bar)

    def _beyond_the_end(self, answer: requests.Response, have: int) -> None:
        """Handle 416: complete if the file ends where we stand, else start again."""
        if answer.headers.get("Content-Range", "").endswith(f"/{have}") and self.size in (None, have):
            return
        self._forget()
        raise _Retry("the server has no bytes after those that arrived")

    def _refuse(self, answer: requests.Response, url: str) -> None:
        """Raise for every answer that is not the file."""
        code, headers = answer.status_code, answer.headers
        if passing(code):
            raise _Retry(f"HTTP {code}", _asked(headers, url))
        if code in (401, 403):
            raise LicenceError(
                f"{url}: HTTP {code}, the server wants a login or an accepted licence, or turns scripts away. Fix: "
                "request access on the source page (for Hugging Face, then set HF_TOKEN), or fetch the file with a "
                "browser and pass it to register_local."
            )
        if code >= 400:
            raise DownloadError(f"{url}: HTTP {code} {answer.reason}, the file is not there any more.")
        if code not in (200, 206) or "x-amzn-waf-action" in {k.lower() for k in headers}:
            raise DownloadError(f"{url}: HTTP {code} without the file; the host turns scripts away.")
        kind = headers.get("Content-Type", "").lower()
        if "text/html" in kind and not self.html:
            raise _web_page(url)
        if "application/json" in kind and ".json" not in self.part.name and not urlsplit(url).path.endswith(".json"):
            raise DownloadError(f"{url}: the server sent a message (JSON) instead of the file.")

    def _total(self, answer: requests.Response, start: int, url: str) -> int | None:
        """Bytes of the whole file as the server announces them, checked against the registry."""
        length = answer.headers.get("Content-Length")
        if length is None or not length.isdigit() or _encoded(answer):
            return None
        total = start + int(length)
        if self.size is not None and total != self.size:
            raise IntegrityError(f"{url}: the server offers {total:,} bytes, the registry says {self.size:,}.")
        return total

    def _need_space(self, total: int | None, start: int) -> None:
        """Refuse to start what cannot fit."""
        need_space(self.part.parent, (total or self.size or 0) - start)

    def _write(self, answer: requests.Response, url: str, start: int, total: int | None, bar: Any) -> None:
        """Append the body to ``part`` and check that all of it came."""
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if validator and validator.startswith("W/"):
            validator = answer.headers.get("Last-Modified")
        meta = {"url": url, "validator": None if _encoded(answer) else validator, "total": total}
        with self.part.open("r+b" if self.part.exists() else "wb", buffering=0) as out:
            out.truncate(start)
            out.seek(start)
            write_json(self.meta, meta)
            bar.reset()
            bar.total = total or self.size
            bar.update(start)
            for chunk in _chunks(answer, _Pace(self.rate, self.window)):
                if out.tell() == 0 and not self.html and _looks_like_html(chunk):
                    raise _web_page(url)
                out.write(chunk)
                bar.update(len(chunk))
            got = out.tell()
        if total is not None and got < total:
            raise _Retry(f"{got:,} of {total:,} bytes came")
        if self.size is not None and got != self.size:
            self._forget()
            raise IntegrityError(f"{url}: {got:,} bytes came, the registry says {self.size:,}.")


def need_space(folder: Path, need: int) -> None:
    """Raise if the disk of ``folder`` cannot hold ``need`` more bytes.

    Parameters
    ----------
    folder
        An existing folder.
    need
        Bytes.

    Raises
    ------
    DownloadError
        If there is too little room.
    """
    free = shutil.disk_usage(folder).free
    if need > 0 and free < need + DISK_MARGIN:
        raise DownloadError(
            f"{folder}: {need:,} bytes are needed and {free:,} are free. Fix: make room, or point "
            "SCDRUGMAP_CACHE_DIR (settings.cache_dir) at a larger disk."
        )


@contextlib.contextmanager
def _bar(progress: Progress, total: int | None, url: str) -> Iterator[Any]:
    from scdrugmap._logging import progress as shown

    if progress is None or isinstance(progress, bool):
        with shown(total, url.split("?")[0].rsplit("/", 1)[-1], "B", show=progress) as bar:
            yield bar
    else:
        yield progress


def _chunks(answer: requests.Response, pace: _Pace) -> Iterator[bytes]:
    """Yield the body as it comes in; nothing is held back that a broken connection could lose."""
    coding = answer.headers.get("Content-Encoding", "identity").lower()
    unpacked = zlib.decompressobj(47) if coding in ("gzip", "x-gzip", "deflate") else None
    if (_encoded(answer) and unpacked is None) or not hasattr(answer.raw, "read1"):
        for chunk in answer.iter_content(CHUNK):
            pace(len(chunk))
            yield chunk
        return
    while chunk := answer.raw.read1(CHUNK, decode_content=False):
        pace(len(chunk))
        yield chunk if unpacked is None else unpacked.decompress(chunk)


def _range_start(answer: requests.Response) -> int:
    text = answer.headers.get("Content-Range", "")
    first = text.removeprefix("bytes").strip().split("-")[0]
    return int(first) if first.isdigit() else -1


def _linked_sha256(answer: requests.Response) -> str | None:
    """SHA-256 that Hugging Face sends beside the redirect to a large file."""
    for step in (*answer.history, answer):
        digest = step.headers.get("X-Linked-ETag", "").strip('"').lower()
        if re.fullmatch(r"[0-9a-f]{64}", digest):
            return digest
    return None


def _encoded(answer: requests.Response) -> bool:
    return answer.headers.get("Content-Encoding", "identity").lower() not in ("", "identity")


def _asked(headers: Mapping[str, str], url: str) -> float | None:
    """Seconds that the server asks us to wait, unless it asks for too many."""
    wait = retry_after(headers)
    if wait is not None and wait > LONGEST_WAIT:
        raise DownloadError(
            f"{url}: the server is busy and asks to come back in {wait:.0f} seconds. Fix: call again then."
        )
    return wait


def _looks_like_html(chunk: bytes) -> bool:
    head = chunk[:512].lstrip().lower()
    return head.startswith((b"<!doctype html", b"<html"))


def _web_page(url: str) -> DownloadError:
    return DownloadError(
        f"{url}: the server sent a web page (a login, a quota or a virus-scan notice) instead of the file. Fix: open "
        "the source page in a browser, fetch the file there, and pass it to register_local."
    )
