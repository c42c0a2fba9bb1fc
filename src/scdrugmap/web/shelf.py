"""What the server offers: predictors on its shelf, curated studies, models, published numbers."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from scdrugmap._errors import InputError
from scdrugmap._files import atomic_folder
from scdrugmap.trust.worth import refuse_worthless
from scdrugmap.web.problems import Problem
from scdrugmap.web.state import Server

log = logging.getLogger("scdrugmap.web")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def predictors(server: Server) -> list[dict[str, Any]]:
    """The predictors on the shelf that are worth more than none, with their cards."""
    out = []
    for folder in sorted(server.settings.folder("predictors").iterdir()):
        if not _NAME.fullmatch(folder.name) or not (folder / "predictor.json").is_file():
            continue
        training = json.loads((folder / "predictor.json").read_text()).get("training") or {}
        try:
            refuse_worthless(training.get("worth"), force=server.settings.below_floor, where="the shelf")
        except InputError as error:
            _tell_once(folder.name, str(error.found))
            continue
        card = folder / "README.md"
        out.append({"name": folder.name, "card": card.read_text() if card.is_file() else ""})
    return out


@cache
def _tell_once(name: str, reason: str) -> None:
    """Every request reads the shelf; the log hears of it once."""
    log.warning("%s is not on the shelf: %s (SCDRUGMAP_WEB_BELOW_FLOOR=true shows it)", name, reason)


def check_predictor(server: Server, name: Any) -> str:
    """The name of a predictor of the shelf."""
    known = [p["name"] for p in predictors(server)]
    if not isinstance(name, str) or name not in known:
        raise Problem(
            422, "predictor", "There is no such predictor on the shelf.",
            f"Choose one of {', '.join(known) or 'none yet: the demo predictor is being made, try again in a minute'}.",
        )  # fmt: skip
    return name


def predictor_folder(server: Server, name: str) -> Path:
    """Where a predictor of the shelf lies."""
    return server.settings.folder("predictors") / check_predictor(server, name)


def add(server: Server, name: str, folder: Path) -> None:
    """Put a predictor on the shelf unless one of this name stands there."""
    place = server.settings.folder("predictors") / name
    if not place.exists():
        with atomic_folder(place) as fresh:
            shutil.copytree(folder, fresh, dirs_exist_ok=True)


def check_study(key: str) -> None:
    """A curated study must be on this machine: a visitor starts no download."""
    import scdrugmap as sd
    from scdrugmap._errors import ScDrugMapError

    try:
        sd.datasets.info(key)
    except ScDrugMapError as error:
        from scdrugmap.web.problems import problem_of

        raise problem_of(error) from None


@cache
def datasets() -> list[dict[str, Any]]:
    """The catalogue of curated studies."""
    import scdrugmap as sd

    return records(sd.datasets.catalogue().reset_index())


@cache
def models() -> list[dict[str, Any]]:
    """The models with what their cards say."""
    import scdrugmap as sd

    return records(sd.models.list().reset_index())


@cache
def published() -> list[dict[str, Any]]:
    """Categories of the published benchmark with the F1 of calling every cell sensitive."""
    import scdrugmap as sd

    return records(sd.datasets.categories().drop(columns="keys"))


def records(frame: Any) -> list[dict[str, Any]]:
    """Rows in plain types."""
    return [clean(row) for row in frame.astype(object).where(frame.notna(), None).to_dict("records")]


def clean(value: Any) -> Any:
    """Plain types that JSON can hold."""
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [clean(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    elif hasattr(value, "tolist"):
        return clean(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
