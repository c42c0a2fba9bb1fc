"""Which kind of file it is by its first bytes, and the checks of text and archives."""

import gzip
import io
import re
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, NoReturn

Limits = dict[str, Any]

FORMATS = "h5ad, h5mu, 10x h5, a zip or tar of a 10x triplet, csv or tsv"
_BLOCK = 1 << 20
_HDF5 = b"\x89HDF\r\n\x1a\n"
#: More than this much expansion of a large part is a bomb; counts of single cells compress 10 to 50 times.
RATIO = 200
_MEMBERS = 200
_TRIPLET = re.compile(r"(matrix\.mtx|(?:barcodes|cells|features|genes)\.tsv)(\.gz)?$")
_NAMES = {"cells.tsv": "barcodes.tsv", "genes.tsv": "features.tsv"}


class Refused(Exception):
    """The file is not taken; says why and what to do."""

    def __init__(self, message: str, fix: str = "write the file again with a current anndata or scanpy.") -> None:
        super().__init__(message)
        self.fix = fix


def look_at(path: Path, unpacked: Path, limits: Limits) -> dict[str, Any]:
    """Return the format and size of a file, or raise :class:`Refused`."""
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        raise Refused("the file is empty", "choose another file.")
    # MuData writes a line of text before the signature.
    if _HDF5 in (start[:8], start[512:520]):
        from hdf5 import look_at_hdf5

        return look_at_hdf5(path, limits)
    if start[:4] == b"PK\x03\x04":
        return look_at_zip(path, unpacked, limits)
    if (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05") or start[:6] == b"\x93NUMPY":
        raise Refused("this is a pickle or NumPy file, which can run code when it is opened", f"send {FORMATS}.")
    if start[257:262] == b"ustar":
        return look_at_tar(path, unpacked, limits)
    if start[:2] == b"\x1f\x8b":
        return look_at_gzip(path, unpacked, limits)
    return look_at_text(path, limits, packed=False)


def look_at_gzip(path: Path, unpacked: Path, limits: Limits) -> dict[str, Any]:
    """A compressed tar or a compressed text."""
    with gzip.open(path) as file:
        try:
            start = file.read(512)
        except (OSError, EOFError, zlib.error):
            raise Refused("the compressed file is damaged", "compress it again.") from None
    if start[257:262] == b"ustar":
        return look_at_tar(path, unpacked, limits)
    if start[:5] in (b"RDX2\n", b"RDX3\n") or start[:2] in (b"X\n", b"A\n"):
        raise Refused("this is an R object", "save the counts as h5ad or as a 10x triplet.")
    if start[:1] == b"\x80":
        raise Refused("this is a pickle file, which can run code when it is opened", f"send {FORMATS}.")
    return look_at_text(path, limits, packed=True)


def look_at_text(path: Path, limits: Limits, packed: bool) -> dict[str, Any]:
    """A table: UTF-8, no NUL, a bounded number of columns, rows and bytes."""
    size = path.stat().st_size
    total = rows = columns = 0
    rest = b""
    first: bytes | None = None
    with gzip.open(path) if packed else path.open("rb") as file:
        while block := _read(file):
            total += len(block)
            _bounded(total, size if packed else None, limits)
            if b"\x00" in block:
                raise Refused(f"this is neither text nor a format that is known ({FORMATS})", "send one of these.")
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            rows += len(lines)
            if first is None and lines:
                first = lines[0]
            if len(rest) > 64 * _BLOCK:
                raise Refused("a line is longer than 64 MB", "send cells as rows and genes as columns.")
    rows += bool(rest.strip())
    head = (first if first is not None else rest).decode("utf-8", "strict")
    columns = max(head.count(separator) for separator in "\t,;") + 1
    if columns < 2 or rows < 2:
        raise Refused(
            f"a table of {rows} rows and {columns} columns holds no counts",
            f"send cells and genes separated by tabs or commas, or {FORMATS}.",
        )
    if min(rows - 1, columns) > limits["cells"] or max(rows, columns) > 2_000_000:
        raise Refused(f"a table of {rows:,} rows and {columns:,} columns is above the limit", "send fewer cells.")
    return {"format": "text.gz" if packed else "text", "rows": rows, "columns": columns}


def look_at_zip(path: Path, unpacked: Path, limits: Limits) -> dict[str, Any]:
    """A triplet in a zip."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise Refused("the zip is damaged", "pack it again.") from None
    with archive:
        members = archive.infolist()
        if any(Path(m.filename).name in ("data.pkl", "byteorder") for m in members):
            raise Refused("this is a PyTorch file, which can run code when it is opened", f"send {FORMATS}.")
        _count(len(members))
        packer = _Unpacker(unpacked, path.stat().st_size, limits)
        for m in members:
            mode = m.external_attr >> 16
            if mode and (mode & 0o170000) not in (0, 0o100000, 0o040000):
                raise Refused("the archive holds a link or a device", "pack plain files only.")
            if m.flag_bits & 1:
                raise Refused("the archive is encrypted", "pack it without a password.")
            _safe(m.filename)
            if not m.is_dir():
                try:
                    with archive.open(m) as stream:
                        packer.take(m.filename, stream, m.file_size)
                except (zipfile.BadZipFile, NotImplementedError):
                    raise Refused("the zip is damaged", "pack it again.") from None
    return packer.finish()


def look_at_tar(path: Path, unpacked: Path, limits: Limits) -> dict[str, Any]:
    """A triplet in a tar, plain or compressed."""
    packer = _Unpacker(unpacked, path.stat().st_size, limits)
    try:
        with tarfile.open(path, "r|*") as archive:
            for i, m in enumerate(archive):
                _count(i + 1)
                if not (m.isreg() or m.isdir()):
                    raise Refused("the archive holds a link or a device", "pack plain files only.")
                _safe(m.name)
                if m.isreg():
                    stream = archive.extractfile(m)
                    packer.take(m.name, stream, m.size)
    except (tarfile.TarError, EOFError, zlib.error, OSError):
        raise Refused("the tar is damaged", "pack it again.") from None
    return packer.finish()


class _Unpacker:
    """Writes the three files of a triplet under names of our own, counting every byte."""

    def __init__(self, folder: Path, packed: int, limits: Limits) -> None:
        self.folder, self.packed, self.limits = folder, packed, limits
        self.total = 0
        self.found: dict[str, str] = {}

    def take(self, name: str, stream: Any, declared: int) -> None:
        match = _TRIPLET.search(name.lower())
        base = Path(name).name
        if match is None:
            if base.startswith(".") or base.lower() in ("readme", "readme.txt", "readme.md"):
                return
            raise Refused(
                "the archive holds a file that is no part of a 10x triplet",
                "pack matrix.mtx, barcodes.tsv and features.tsv (or .gz) only.",
            )
        if declared > self.limits["expanded"]:
            _bomb()
        plain = _NAMES.get(match[1], match[1])
        if plain in self.found:
            raise Refused(f"the archive holds {plain} twice", "pack one triplet.")
        self.found[plain] = plain + (match[2] or "")
        with (self.folder / self.found[plain]).open("xb") as out:
            while block := stream.read(_BLOCK):
                self.total += len(block)
                _bounded(self.total, self.packed, self.limits)
                out.write(block)

    def finish(self) -> dict[str, Any]:
        missing = {"matrix.mtx", "barcodes.tsv", "features.tsv"} - set(self.found)
        if missing:
            raise Refused(f"the archive lacks {', '.join(sorted(missing))}", "pack the three files of a 10x matrix.")
        expanded = 0
        for name in self.found.values():
            if name.endswith(".gz"):
                size = (self.folder / name).stat().st_size
                with gzip.open(self.folder / name) as file:
                    own = 0
                    while block := _read(file):
                        own += len(block)
                        _bounded(own, size, self.limits)
                expanded += own
                _bounded(expanded, None, self.limits)
        matrix = self.folder / self.found["matrix.mtx"]
        with gzip.open(matrix) if matrix.suffix == ".gz" else matrix.open("rb") as file:
            genes, cells = _header(io.BufferedReader(file))
        if cells > self.limits["cells"] or genes > 1_000_000:
            raise Refused(
                f"{cells:,} cells and {genes:,} genes are above the limit of {self.limits['cells']:,} cells",
                "send fewer cells.",
            )
        return {"format": "mtx", "cells": cells, "genes": genes}


def _header(file: Any) -> tuple[int, int]:
    """Numbers of genes and cells of a Matrix Market file."""
    line = file.readline(1000)
    if not line.startswith(b"%%MatrixMarket matrix coordinate"):
        raise Refused("matrix.mtx is no sparse Matrix Market file", "pack the files as the 10x software writes them.")
    while line.startswith(b"%"):
        line = file.readline(100_000)
    try:
        genes, cells, _ = (int(n) for n in line.split())
    except ValueError:
        raise Refused("matrix.mtx does not say its size", "pack the files as 10x software writes them.") from None
    return genes, cells


def _read(file: Any) -> bytes:
    try:
        return file.read(_BLOCK)
    except (OSError, EOFError, zlib.error):
        raise Refused("the compressed file is damaged", "compress it again.") from None


def _bounded(total: int, packed: int | None, limits: Limits) -> None:
    if total > limits["expanded"] or (packed is not None and total > 32 * _BLOCK and total > RATIO * max(packed, 1)):
        _bomb()


def _bomb() -> NoReturn:
    raise Refused("the file expands to far more than it is (a decompression bomb)", "send plain counts.")


def _count(n: int) -> None:
    if n > _MEMBERS:
        raise Refused(f"the archive holds more than {_MEMBERS} files", "pack the three files of one triplet.")


def _safe(name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\x00" in name:
        raise Refused("the archive holds a name that leaves its folder", "pack plain files without folders.")
