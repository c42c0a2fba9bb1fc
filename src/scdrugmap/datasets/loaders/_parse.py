"""Text matrices parsed in blocks of rows straight to CSR."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import lzma
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from scdrugmap._errors import InputError

#: Bytes of text per block; a block needs about forty times as much memory while it is parsed.
BLOCK = 4 << 20
#: In the order in which they are tried.
SEPARATORS = "\t,;| "
NEWLINE, QUOTE, ZERO, NINE = 10, 34, 48, 57


@dataclass(frozen=True)
class Layout:
    """How the rows of a text matrix are built.

    Attributes
    ----------
    separator
        The character between fields.
    labels
        Names of the leading text columns (blank where the header does not name them).
    names
        Names of the value columns, from the header.
    skipped
        Lines up to and including the header.
    """

    separator: str
    labels: tuple[str, ...]
    names: tuple[str, ...]
    skipped: int = 1


@dataclass(frozen=True)
class Block:
    """Some rows: one tuple of texts per row, and the values as CSR (float32)."""

    labels: list[tuple[str, ...]]
    values: sparse.csr_matrix


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[Any]:
    """Open a plain, gzip, bzip2 or xz file for reading bytes of UTF-8; the content decides, not the name.

    Raises
    ------
    InputError
        The file is cut off or damaged, as a download that broke off leaves it.
    """
    try:
        with _opened(path) as stream:
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise damaged(path, error) from error


def damaged(path: Path, error: object) -> InputError:
    """The error for a file that is not all there."""
    return InputError(
        "path",
        f"{path.name}, which is cut off or damaged ({error})",
        "a complete file",
        "fetch it again and compare its size with that at the source.",
    )


def _opened(path: Path) -> Any:
    with path.open("rb") as raw:
        magic = raw.read(6)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        raise InputError("path", f"{path.name}, compressed with zstd", "plain, gzip, bzip2 or xz", "unpack it first.")
    stream: Any = path.open("rb")
    for start, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open)):
        if magic.startswith(start):
            stream.close()
            stream = opener(path, "rb")
    try:
        head = stream.read(1 << 16)
    except EOFError:
        head = b""  # cut off early: the reading itself will say so
    stream.seek(0)
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        encoding = encoding if encoding == "utf-16" else "cp1252"
    if encoding == "utf-16" or (b"\r" in head and b"\n" not in head):
        return _Recoded(stream, encoding)
    return stream


class _Recoded:
    """A file in UTF-16, or with the line ends of old Macs, as bytes of UTF-8 with plain line ends."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self.text = io.TextIOWrapper(stream, encoding=encoding, errors="replace", newline=None)

    def read(self, size: int = -1) -> bytes:
        return self.text.read(size).encode()

    def readline(self) -> bytes:
        return self.text.readline().encode()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def __enter__(self) -> _Recoded:
        return self

    def __exit__(self, *exc: object) -> None:
        self.text.close()


def decode(text: bytes) -> str:
    """Names in UTF-8, or in the encoding of western Windows where they are none."""
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError:
        return text.decode("cp1252", errors="replace")


def sniff(path: Path, n_labels: int | None = None) -> Layout:
    """Find the separator, the leading text columns and the names of the value columns.

    The separator is the one under which the header and the first rows agree; lines above the header are skipped.

    Parameters
    ----------
    path
        The text file.
    n_labels
        Number of leading text columns; the leading columns that hold no number (at least one) if left out.

    Returns
    -------
    The layout.

    Raises
    ------
    InputError
        If header and first rows do not fit together.
    """
    with open_text(path) as stream:
        lines = [decode(stream.readline()).rstrip("\r\n") for _ in range(16)]
    lines = lines[: max((i for i, line in enumerate(lines) if line.strip()), default=-1) + 1]
    if len(lines) < 2:
        raise InputError("path", str(path), "a header and at least one row", "check that the download is complete.")
    for skipped in range(min(len(lines) - 1, 10)):
        for separator in SEPARATORS:
            found = _fit(lines[skipped:], separator)
            if found is not None:
                return _layout(path, separator, skipped + 1, *found, n_labels)
    counts = {s: [len(next(csv.reader([line], delimiter=s))) for line in lines[:2]] for s in SEPARATORS}
    head, first = max(counts.values(), key=lambda pair: min(pair))
    texts = "" if head != first else "; the second line may be another header, of texts"
    raise InputError(
        "path",
        f"{head} fields in the header and {first} in the first row of {path.name}{texts}",
        "as many, or one less in the header, and numbers in the rows",
        "check that the file is a matrix with one header line, separated by tabs, commas, semicolons, bars or blanks.",
    )


def _fit(lines: list[str], separator: str) -> tuple[list[str], list[list[str]]] | None:
    """The fields of header and first rows if this separator makes a table of them."""
    head, *rows = (next(csv.reader([line], delimiter=separator)) if line else [] for line in lines[:6])
    rows = [row for row in rows if row]
    if head and head[-1] == "" and rows and len(head) == len(rows[0]) + 1:
        head = head[:-1]
    if not rows or len(rows[0]) < 2 or len(rows[0]) - len(head) not in (0, 1):
        return None
    rows = [row for row in rows if len(row) == len(rows[0])]
    return (head, rows) if any(_is_number(field) for row in rows for field in row[1:]) else None


def _layout(
    path: Path, separator: str, skipped: int, head: list[str], rows: list[list[str]], n_labels: int | None
) -> Layout:
    """Tell the leading text columns from the values."""
    width = len(rows[0])
    if len(head) == width and len(set(head[1:])) < width - 1 and all(map(_is_number, head[1:])):
        raise InputError(
            "path",
            f"numbers in the first line of {path.name}",
            "a header line with names",
            "add a line with the names of the columns.",
        )
    head = [""] * (width - len(head)) + head
    if n_labels is None:
        texts = [not any(_is_number(row[i]) for row in rows) for i in range(width)]
        n_labels = max(1, texts.index(False) if False in texts else width)
    if len(head) <= n_labels:
        raise InputError("path", str(path), "columns of numbers", "check the separator and the file.")
    return Layout(separator, tuple(head[:n_labels]), tuple(head[n_labels:]), skipped)


def _is_number(field: str) -> bool:
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False


def blocks(path: Path, layout: Layout, size: int = BLOCK) -> Iterator[Block]:
    """Yield the rows of a text matrix, some at a time.

    Parameters
    ----------
    path
        The text file.
    layout
        Its layout, from :func:`sniff`.
    size
        Bytes to read at once.

    Yields
    ------
    Blocks of whole rows, in order.

    Raises
    ------
    InputError
        If a row has another number of fields or a field is no number; the message names the line.
    """
    line = layout.skipped + 1
    with open_text(path) as stream:
        for _ in range(layout.skipped):
            stream.readline()
        rest = b""
        while data := stream.read(size):
            data = rest + data
            cut = data.rfind(b"\n") + 1
            rest = data[cut:]
            if data[:cut].strip():
                block = _parse(data[:cut], layout, path.name, line)
                line += len(block.labels)
                yield block
        if rest.strip():
            yield _parse(rest + b"\n", layout, path.name, line)


def _parse(text: bytes, layout: Layout, name: str, line: int) -> Block:
    """Parse whole lines; quotes are dropped, a separator inside quotes is respected."""
    text = text.replace(b"\r", b"").lstrip(b"\n").rstrip(b"\n") + b"\n"
    n_labels, n_fields = len(layout.labels), len(layout.labels) + len(layout.names)
    plain = text.replace(b'"', b"")
    starts, ends = _fields(plain, layout.separator, n_fields)
    if starts is None and plain != text:
        rows = list(csv.reader(io.StringIO(decode(text)), delimiter=layout.separator))
        _check_width(rows, n_fields, name, line)
        values = "\n".join(layout.separator.join(r[n_labels:]) for r in rows) + "\n"
        inner = _parse(values.encode(), Layout(layout.separator, (), layout.names), name, line)
        return Block([tuple(r[:n_labels]) for r in rows], inner.values)
    if starts is None:
        rows = [r.split(layout.separator) for r in decode(plain).splitlines()]
        _check_width(rows, n_fields, name, line)
    assert starts is not None and ends is not None
    labels = [
        tuple(decode(plain[i:j]) for i, j in zip(a, b, strict=True))
        for a, b in zip(starts[:, :n_labels].tolist(), ends[:, :n_labels].tolist(), strict=True)
    ]
    values = _values(plain, starts[:, n_labels:], ends[:, n_labels:], name, line)
    return Block(labels, values)


def _fields(text: bytes, separator: str, n_fields: int) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """First and last byte of every field (rows x fields), or nothing if the rows are uneven."""
    raw = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero((raw == ord(separator)) | (raw == NEWLINE))
    if ends.size % n_fields:
        return None, None
    breaks = (raw[ends] == NEWLINE).reshape(-1, n_fields)
    if breaks[:, :-1].any() or not breaks[:, -1].all():
        return None, None
    starts = np.concatenate([[0], ends[:-1] + 1])
    return starts.reshape(-1, n_fields), ends.reshape(-1, n_fields)


def _check_width(rows: list[list[str]], n_fields: int, name: str, line: int) -> None:
    for offset, row in enumerate(rows):
        if len(row) != n_fields:
            raise InputError(
                "path",
                f"{len(row)} fields in line {line + offset} of {name}",
                f"{n_fields} fields, as in the header",
                "the file may be cut off or not a matrix.",
            )


def _values(text: bytes, starts: np.ndarray, ends: np.ndarray, name: str, line: int) -> sparse.csr_matrix:
    """Numbers of the fields that are not a plain 0, as CSR."""
    raw = np.frombuffer(text, np.uint8)
    lengths = ends - starts
    row, column = np.nonzero((lengths != 1) | (raw[starts] != ZERO))
    first, length = starts[row, column], lengths[row, column]
    value = np.zeros(row.size, np.float64)
    whole = (length > 0) & (length <= 15)
    for k in range(int(length[whole].max(initial=0))):
        at = np.flatnonzero(whole & (length > k))
        digit = raw[first[at] + k]
        good = (digit >= ZERO) & (digit <= NINE)
        whole[at[~good]] = False
        value[at] = value[at] * 10 + (digit - np.uint8(ZERO))
    rest = np.flatnonzero(~whole)  # decimals, exponents, signs: few in counts
    fields = [text[i : i + n] for i, n in zip(first[rest].tolist(), length[rest].tolist(), strict=True)]
    bad = 0
    try:
        value[rest] = np.array(fields, dtype=bytes).astype(np.float64)
        bad = int(np.argmin(np.isfinite(value[rest]))) if rest.size else 0
        clean = not rest.size or bool(np.isfinite(value[rest[bad]]))
    except ValueError:
        bad, clean = next(i for i, f in enumerate(fields) if not _is_number(f.decode(errors="replace"))), False
    if not clean:
        raise InputError(
            "path",
            f"{fields[bad].decode(errors='replace')!r} in line {line + row[rest[bad]]} of {name}",
            "a number",
            "missing values, decimal commas and text columns are not part of a count matrix; see n_labels.",
        )
    matrix = sparse.csr_matrix((value.astype(np.float32), (row, column)), shape=starts.shape)
    matrix.eliminate_zeros()
    return matrix
