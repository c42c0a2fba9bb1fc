"""The two registries of files: what exists, where it lies, and how sure each digest is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from scdrugmap._errors import InputError, UnknownNameError

Kind: TypeAlias = Literal["checkpoints", "datasets"]
KINDS: tuple[Kind, ...] = ("checkpoints", "datasets")

#: What a grade of evidence means; see :class:`FileSpec`.
GRADES = {
    "A": "digest or size published by the provider",
    "B": "two or more independent public records agree",
    "C": "one third-party record",
    "NV": "not verified: the first download is recorded and compared with ever after",
}
REGISTRY_FOLDER = Path(__file__).parent / "registry"


class FileSpec(BaseModel):
    """One file of an entry.

    Attributes
    ----------
    name
        Path inside the entry's folder, in the layout that the official code expects.
    urls
        Addresses, tried in order: ``https://...``, ``hf:owner/repository@commit/path`` or ``doi:10.x/y/file``.
    size, sha256, md5
        Bytes and digests, where known.
    grade
        Evidence for them, a key of ``GRADES``.
    required
        Whether the entry is complete without it.
    unpack
        Folder, relative to the entry, into which an archive is unpacked; the archive is then dropped.
    convert
        ``"vocabulary"``: the source is a JSON list or ``{name: index}``; the stored file has one name a line, and
        the digest is that of the stored file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    grade: Literal["A", "B", "C", "NV"] = "NV"
    required: bool = True
    unpack: str | None = None
    convert: Literal["vocabulary"] | None = None
    note: str = ""

    @field_validator("name", "unpack")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        """Refuse names that would leave the entry's folder."""
        if value is not None:
            path = PurePosixPath(value)
            if path.is_absolute() or ".." in path.parts or "\\" in value:
                raise ValueError(f"{value!r} leaves the folder of its entry")
        return value

    @property
    def digest(self) -> str | None:
        """Digest in the notation of pooch (``md5:`` prefix where only that is known)."""
        return self.sha256 or (f"md5:{self.md5}" if self.md5 else None)


class Entry(BaseModel):
    """One data set or checkpoint of the registry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    key: str
    title: str
    aliases: tuple[str, ...] = ()
    model: str | None = None
    series: str | None = None
    files: tuple[FileSpec, ...] = ()
    licence: str
    licence_url: str = ""
    non_commercial: bool = False
    gated: bool = False
    citation: str = ""
    source: str = ""
    revision: str | None = None
    manual: str = ""
    note: str = ""

    @property
    def needs_acceptance(self) -> bool:
        """Whether the licence has to be accepted before the first byte."""
        return self.non_commercial or self.gated

    @property
    def grade(self) -> str:
        """Worst grade of evidence among the required files."""
        order = list(GRADES)
        grades = [f.grade for f in self.files if f.required]
        return max(grades, key=order.index) if grades else "-"

    @property
    def size(self) -> int | None:
        """Bytes of the required files, or ``None`` if one of them is not known."""
        sizes = [f.size for f in self.files if f.required]
        return None if any(s is None for s in sizes) else sum(s for s in sizes if s is not None)

    def file(self, name: str) -> FileSpec:
        """Return the file with this name."""
        for spec in self.files:
            if spec.name == name:
                return spec
        raise UnknownNameError("files", name, [f.name for f in self.files])

    def __str__(self) -> str:
        lines = [f"{self.key}: {self.title}", f"  licence   {licence_line(self)}"]
        lines += [f"  {label:<9} {value}" for label, value in self._facts() if value]
        for f in self.files:
            size = "size unknown" if f.size is None else f"{f.size:,} bytes"
            lines.append(f"  file      {f.name} ({size}; evidence {f.grade}; {f.digest or 'digest unknown'})")
            lines += [f"              {u}" for u in f.urls]
        return "\n".join(lines)

    def _facts(self) -> list[tuple[str, str | None]]:
        return [
            ("model", self.model),
            ("source", self.source),
            ("revision", self.revision),
            ("citation", self.citation),
            ("note", self.note),
            ("by hand", self.manual),
        ]


def licence_line(entry: Entry) -> str:
    """Return the one line about the licence that is shown before the first byte."""
    flags = [t for t, on in (("non-commercial use only", entry.non_commercial), ("gated", entry.gated)) if on]
    return (
        " ".join([entry.licence, f"[{', '.join(flags)}]" if flags else "", entry.licence_url])
        .replace("  ", " ")
        .strip()
    )


def normalise(key: str) -> str:
    """Lower case without punctuation, the form in which keys are compared."""
    return re.sub(r"[^a-z0-9]", "", key.lower())


@lru_cache
def _read(path: Path, kind: Kind) -> dict[str, Entry]:
    """Parse one registry file; keys that start with a dot hold shared fragments."""
    safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, ten times faster
    raw: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=safe)  # noqa: S506
    return {
        key: Entry(kind=kind, key=key, files=_flat(body.pop("files", [])), **body)
        for key, body in raw.items()
        if not key.startswith(".")
    }


def _flat(files: list[Any]) -> tuple[FileSpec, ...]:
    """Flatten lists of files that were joined through YAML anchors."""
    out: list[FileSpec] = []
    for item in files:
        out += _flat(item) if isinstance(item, list) else [FileSpec(**item)]
    return tuple(out)


#: Entries of other packages, by registry.
_ADDED: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}


def add_entries(kind: Kind, bodies: Mapping[str, Mapping[str, Any]]) -> None:
    """Add entries of another package to a registry, for this process.

    Parameters
    ----------
    kind
        ``"checkpoints"`` or ``"datasets"``.
    bodies
        Key to fields, as in the packaged registry: ``title``, ``licence``, ``files`` (``name``, ``urls``, ``sha256`` ...).

    Raises
    ------
    InputError
        If a key is taken, or fields are not those of an entry.

    Examples
    --------
    >>> from scdrugmap.download.catalog import add_entries, find
    >>> files = [{"name": "weights.safetensors", "urls": ["https://example.org/weights.safetensors"]}]
    >>> add_entries("checkpoints", {"bag-v1": {"title": "A bag of genes", "licence": "CC0-1.0", "files": files}})
    >>> find("checkpoints", "BAG v1").grade
    'NV'
    """
    packaged = {normalise(key) for key in _read(REGISTRY_FOLDER / f"{kind}.yaml", kind)}
    for key, body in bodies.items():
        if normalise(key) in packaged:
            raise InputError("key", key, "a key that the package does not use", "choose another key.")
        fields = dict(body)
        try:
            entry = Entry(kind=kind, key=key, files=_flat(list(fields.pop("files", []))), **fields)
        except (ValidationError, TypeError) as error:
            what = str(error).splitlines()[0]
            raise InputError(
                "checkpoints", f"{key}: {what}", "the fields of an entry", "see the developer guide."
            ) from None
        _ADDED[kind][key] = entry


def entries(kind: Kind) -> dict[str, Entry]:
    """Return every entry of one registry: those of the package, then those that plug-ins added.

    Parameters
    ----------
    kind
        ``"checkpoints"`` or ``"datasets"``.

    Returns
    -------
    Key to entry, in the order of the registry file.

    Raises
    ------
    UnknownNameError
        If there is no such registry.

    Examples
    --------
    >>> from scdrugmap import download
    >>> download.entries("checkpoints")["tgpt-64"].model
    'tgpt'
    """
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    return _read(REGISTRY_FOLDER / f"{kind}.yaml", kind) | _ADDED[kind]


def find(kind: Kind, key: str) -> Entry:
    """Look an entry up by key or alias, whatever its case and punctuation.

    Parameters
    ----------
    kind
        ``"checkpoints"`` or ``"datasets"``.
    key
        Key or alias.

    Returns
    -------
    The entry.

    Raises
    ------
    UnknownNameError
        If nothing has that name; the message suggests the nearest ones.

    Examples
    --------
    >>> from scdrugmap import download
    >>> download.find("checkpoints", "scGPT").key
    'scgpt-human'
    """
    table = entries(kind)
    if not isinstance(key, str):
        raise InputError("key", key, "text", f"pass one of the keys of listing({kind!r}).")
    wanted = normalise(key)
    for name, entry in table.items():
        if wanted == normalise(name) or wanted in map(normalise, entry.aliases):
            return entry
    raise UnknownNameError("key", key, list(table), f"See listing({kind!r}).")


def expand(url: str) -> str:
    """Turn the short form of a Hugging Face address into a full one; ``HF_ENDPOINT`` is honoured."""
    if not url.startswith("hf:"):
        return url
    match = re.fullmatch(r"hf:(?P<repo>[^@]+)@(?P<revision>[^/]+)/(?P<path>.+)", url)
    if match is None:
        raise ValueError(f"{url!r} is not hf:owner/repository@commit/path")
    return f"{hf_endpoint()}/{match['repo']}/resolve/{match['revision']}/{match['path']}"


def hf_endpoint() -> str:
    """Return the address of the Hugging Face hub or of the mirror that stands for it."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
