"""One job, in a process of its own: from a run specification to files that can be taken home."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scdrugmap._errors import ScDrugMapError
from scdrugmap.web import jobs, kinds, shelf, uploads
from scdrugmap.web.config import ServerSettings
from scdrugmap.web.problems import Problem, words_of
from scdrugmap.web.state import Server

log = logging.getLogger("scdrugmap.web")
Tell = Callable[..., None]


def run_job(settings: ServerSettings, job_id: str, request: dict[str, Any], tell: Tell) -> tuple[str, str | None]:
    """Run and return how it ended: ``("done", None)`` or ``("failed", why)``."""
    from scdrugmap.settings import settings as library

    library.offline = True
    server = Server(settings)
    folder = jobs.folder(server, job_id)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "files").mkdir(parents=True)
    try:
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            report_progress(tell)
            _Run(server, folder, work, request, tell).do(given)
    except (ScDrugMapError, Problem, MemoryError) as error:
        return ("failed", words_of(error) if not isinstance(error, Problem) else f"{error.message} Fix: {error.fix}")
    except BrokenPipeError:
        raise
    except Exception as error:
        number = uuid.uuid4().hex[:8]
        log.exception("error %s", number)
        return ("failed", f"{words_of(error)} (error {number})")
    result = folder / "result"
    shutil.rmtree(result, ignore_errors=True)
    work.rename(result)
    shutil.rmtree(folder / "store", ignore_errors=True)
    return ("done", None)


class _Run:
    """What one job holds while it runs."""

    def __init__(self, server: Server, folder: Path, work: Path, request: dict[str, Any], tell: Tell) -> None:
        self.server, self.folder, self.work, self.tell = server, folder, work, tell
        self.kind = kinds.find(request["kind"])
        self.request, self.options = request, dict(request["options"])

    def do(self, given: list[Any]) -> None:
        self.tell(stage="reading", percent=3.0)
        step = getattr(self, f"_{self.kind.name}", None)
        if step is None:
            self._tool()
        else:
            step(given)

    def _cells(self, role: str) -> Any:
        """Cells of an upload, or of a curated study."""
        from scdrugmap.datasets.files import read_cells

        value = self.request[role]
        if not uploads.is_secret(value):
            import scdrugmap as sd

            if value.startswith("demo:"):
                from scdrugmap.web.demo import cells_of

                return cells_of(value)
            return sd.datasets.fetch(value)
        return read_cells(uploads.cells_file(self.server, uploads.find(self.server, value, for_job=True)))

    def _spec(self, number: int, **places: Any) -> Any:
        one = self.kind.specs[number]
        own = {k: v for k, v in self.options.items() if k in one.model_fields}
        return one(**places, **own)

    def _predict(self, given: list[Any]) -> None:
        folder = shelf.predictor_folder(self.server, self.request["predictor"])
        spec = self._spec(0, input="cells.h5ad", output="predictions.csv", predictor="predictor")
        cells = self._cells("query")
        self._predict_with(folder, cells, spec, given, {"run.yaml": spec.to_yaml()})

    def _train_predict(self, given: list[Any]) -> None:
        import scdrugmap as sd

        spec = self._spec(0, input="reference.h5ad", output="predictor")
        reference = self._cells("reference")
        self.tell(stage="training", percent=10.0)
        predictor = sd.tl.train(reference, **spec.arguments(sd.tl.train))
        predictor.save(self.work / "predictor", overwrite=True)
        if self.request["reference"] == "demo:reference":
            shelf.add(self.server, "demo", self.work / "predictor")
        shutil.make_archive(str(self.work / "files" / "predictor"), "zip", self.work / "predictor")
        from scdrugmap.spec import PredictSpec

        then = PredictSpec(
            input=Path("cells.h5ad"), output=Path("predictions.csv"), predictor=Path("predictor"), seed=spec.seed,
            mod=spec.mod,
        )  # fmt: skip
        runs = {"train.yaml": spec.to_yaml(), "run.yaml": then.to_yaml()}
        self._predict_with(self.work / "predictor", self._cells("query"), then, given, runs)

    def _predict_with(self, predictor: Path, cells: Any, spec: Any, given: list[Any], runs: dict[str, str]) -> None:
        import scdrugmap as sd
        from scdrugmap.web.results import write_prediction

        data = cells.mod[spec.mod] if hasattr(cells, "mod") else cells
        sample_key = self.options.get("sample_key") or ("sample" if "sample" in data.obs else None)
        start = time.perf_counter()
        self.tell(stage="predicting", percent=55.0)
        trained = sd.load_predictor(predictor)
        given_to = spec.arguments(sd.tl.predict_response)
        sd.tl.predict_response(cells, **given_to | {"predictor": trained, "sample_key": sample_key})
        self.tell(stage="map", percent=75.0, rate=round(data.n_obs / (time.perf_counter() - start), 1))
        notes = [str(w.message) for w in given if type(w.message).__module__.startswith("scdrugmap")]
        write_prediction(self.work, cells, spec, trained, predictor, sample_key, notes, runs, self.tell)

    def _benchmark(self, given: list[Any]) -> None:
        import scdrugmap as sd
        from scdrugmap.web.results import write_benchmark

        spec = self._spec(0, input="cells.h5ad", output="benchmark")
        cells = self._cells("query")
        self.tell(stage="evaluating", percent=5.0)

        def on_unit(_: Any, done: int, total: int) -> None:
            self.tell(stage="evaluating", percent=5 + 85 * done / max(total, 1))

        given_to = spec.arguments(sd.tl.benchmark) | {"store": self.folder / "store"}
        result = sd.tl.benchmark(cells, **given_to, on_unit=on_unit, progress=False)
        self.tell(stage="packing", percent=92.0)
        notes = [str(w.message) for w in given if type(w.message).__module__.startswith("scdrugmap")]
        write_benchmark(self.work, result, spec, notes)

    def _explain(self, _: list[Any]) -> None:
        """Tables, figures and page of an explanation become the files of the job."""
        from scdrugmap.study.explain import explain
        from scdrugmap.web.results import write_explanation

        folder = shelf.predictor_folder(self.server, self.request["predictor"])
        spec = self._spec(0, input="cells.h5ad", output=self.work / "files", predictor=folder)
        cells = self._cells("query")
        self.tell(stage="explaining", percent=20.0)
        explain(spec, cells)
        self.tell(stage="packing", percent=95.0)
        public = spec.model_copy(update={"output": Path("explained"), "predictor": Path("predictor")})
        write_explanation(self.work, public, folder)

    def _tool(self) -> None:
        """A tool that writes into the cells: run it and give the cells back."""
        import scdrugmap as sd
        from scdrugmap.datasets.files import write_cells
        from scdrugmap.web.results import write_tool

        places: dict[str, Any] = {"input": "cells.h5ad", "output": "cells.h5ad"}
        if self.kind.needs_predictor:
            places["predictor"] = shelf.predictor_folder(self.server, self.request["predictor"])
        spec = self._spec(0, **places)
        room, name = spec.tool.split(".")
        function = getattr(getattr(sd, room), name)
        cells = self._cells("query")
        self.tell(stage=self.kind.name, percent=20.0)
        given = spec.arguments(function)
        if "reference" in self.request:
            given["reference"] = self._cells("reference")
        result = function(cells, **given)
        if self.kind.needs_predictor:
            spec = spec.model_copy(update={"predictor": Path("predictor")})
        write_cells(cells, self.work / "files" / "cells.h5ad")
        write_tool(self.work, name, cells, result, spec)


def report_progress(tell: Tell) -> None:
    """Let every progress bar of the library speak to the job page instead of a terminal."""
    import tqdm.auto

    class Reporter(tqdm.auto.tqdm):
        """A bar that tells and does not draw."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": False, "mininterval": 0.5}))

        def display(self, *_: Any, **__: Any) -> None:
            rate = self.format_dict.get("rate")
            if self.total and rate:
                tell(stage=str(self.desc or "working").rstrip(": ")[:60], rate=round(float(rate), 1))

        def clear(self, *_: Any, **__: Any) -> None:
            """Nothing was drawn."""

        def close(self) -> None:
            self.disable = True

    tqdm.auto.tqdm = Reporter
