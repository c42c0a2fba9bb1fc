"""A client of the REST API in a page of Python."""

from __future__ import annotations

import io
import tempfile
import time
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scdrugmap._errors import InputError, ScDrugMapError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


class Client:
    """Speaks with a server that ``scdrugmap serve`` runs.

    Parameters
    ----------
    url
        Address of the server.
    key
        Key, where its owner wants one.
    timeout
        Seconds to wait for one answer.

    Examples
    --------
    >>> client = Client("http://127.0.0.1:8000")
    >>> table = client.predict(adata, predictor="demo")  # doctest: +SKIP
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 60) -> None:
        import requests

        self.url, self.timeout = url.rstrip("/"), timeout
        self.http = requests.Session()
        if key is not None:
            self.http.headers["Authorization"] = f"Bearer {key}"

    def upload(
        self, cells: AnnData | str | PathLike[str], *, chunk: int = 8 << 20, wait: float = 600
    ) -> dict[str, Any]:
        """Send cells and wait for the check.

        Parameters
        ----------
        cells
            AnnData, or a file in any format that the server takes.
        chunk
            Bytes of one piece.
        wait
            Seconds to wait for the check.

        Returns
        -------
        The state of the upload: ``id`` and ``check``.

        Raises
        ------
        InputError
            If the server refuses the file; the text says why and what to do.
        """
        if hasattr(cells, "write_h5ad"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "cells.h5ad"
                cells.write_h5ad(path)
                return self.upload(path, chunk=chunk, wait=wait)
        path = Path(cells)
        state = self._ask("POST", "uploads", json={"filename": path.name, "size": path.stat().st_size})
        place = f"uploads/{state['id']}"
        with path.open("rb") as file:
            while state["offset"] < path.stat().st_size:
                file.seek(state["offset"])
                headers = {"Upload-Offset": str(state["offset"]), "Content-Type": "application/octet-stream"}
                state = self._ask("PATCH", place, data=file.read(chunk), headers=headers)
        state = self._ask("POST", f"{place}/complete")
        end = time.monotonic() + wait
        while state["state"] == "checking" and time.monotonic() < end:
            time.sleep(0.2)
            state = self._ask("GET", place)
        if state["state"] != "accepted":
            raise InputError("cells", state["state"], "a file that the server takes", state.get("reason", "try again."))
        return state

    def submit(self, kind: str, **request: Any) -> str:
        """Ask for a job and return its id.

        Parameters
        ----------
        kind
            ``"predict"``, ``"train_predict"``, ``"benchmark"`` ...
        **request
            ``query``, ``reference``, ``predictor``, ``options``.
        """
        return str(self._ask("POST", "jobs", json={"kind": kind, **request})["id"])

    def status(self, job: str) -> dict[str, Any]:
        """How far a job is."""
        return self._ask("GET", f"jobs/{job}")

    def wait(self, job: str, *, timeout: float = 3600) -> dict[str, Any]:
        """Wait for the end of a job.

        Raises
        ------
        ScDrugMapError
            If it fails or takes longer; with the library's own text.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            state = self.status(job)
            if state["state"] == "done":
                return state
            if state["state"] not in ("queued", "running"):
                raise ScDrugMapError(f"the job {state['state']}: {state.get('reason', '')}")
            time.sleep(0.3)
        raise ScDrugMapError(f"the job is not done after {timeout:g} s")

    def file(self, job: str, name: str) -> bytes:
        """One file of a finished job."""
        return self._raw("GET", f"jobs/{job}/files/{name}").content

    def table(self, job: str, name: str = "predictions.csv") -> pd.DataFrame:
        """One table of a finished job, cells as its index."""
        import pandas as pd

        return pd.read_csv(io.BytesIO(self.file(job, name)), index_col=0)

    def predict(self, cells: Any, predictor: str = "demo", **options: Any) -> pd.DataFrame:
        """Upload, predict, and return the table of cells.

        Parameters
        ----------
        cells
            AnnData or a file.
        predictor
            Name on the server's shelf.
        **options
            Fields of the run specification.
        """
        query = self.upload(cells)["id"]
        job = self.submit("predict", query=query, predictor=predictor, options=options)
        self.wait(job)
        return self.table(job)

    def cancel(self, job: str) -> None:
        """Stop a job."""
        self._ask("POST", f"jobs/{job}/cancel")

    def delete(self, job: str) -> None:
        """Delete every byte of a job."""
        self._raw("DELETE", f"jobs/{job}")

    def delete_upload(self, upload: str) -> None:
        """Delete every byte of an upload."""
        self._raw("DELETE", f"uploads/{upload}")

    def list(self, what: str) -> Any:
        """``"models"``, ``"datasets"``, ``"predictors"``, ``"kinds"``, ``"limits"`` or ``"published"``."""
        return self._raw("GET", what).json()

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._raw(method, path, **options).json()
        return answer

    def _raw(self, method: str, path: str, **options: Any) -> Any:
        answer = self.http.request(method, f"{self.url}/api/v1/{path}", timeout=self.timeout, **options)
        if answer.status_code >= 400:
            try:
                error = answer.json()["error"]
            except (ValueError, KeyError):
                error = {"code": str(answer.status_code), "message": "no answer", "fix": "look at the server."}
            raise InputError(error["code"], error["message"], "a request that the server takes", error["fix"])
        return answer
