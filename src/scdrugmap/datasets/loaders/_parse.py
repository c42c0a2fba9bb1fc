"""Text matrices parsed in blocks of rows straight to CSR."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from scdrugmap._errors import InputError

#: Bytes of text per block; a block needs about forty times as much memory while it is parsed.
BLOCK = 4 << 20
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
    """

    separator: str
    labels: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Some rows: one tuple of texts per row, and the values as CSR (float32)."""

    labels: list[tuple[str, ...]]
    values: sparse.csr_matrix


def open_text(path: Path) -> Any:
    """Open a plain, gzip, bzip2 or xz file for reading bytes; the content decides, not the name."""
    with path.open("rb") as raw:
        magic = raw.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(path, "rb")
    if magic.startswith(b"BZh"):
        return bz2.open(path, "rb")
    if magic.startswith(b"\xfd7zXZ"):
        return lzma.open(path, "rb")
    return path.open("rb")


def sniff(path: Path, n_labels: int | None = None) -> Layout:
    """Find the separator, the leading text columns and the names of the value columns.

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
        If header and first row do not fit together.
    """
    with open_text(path) as lines:
        header, first = (lines.readline().decode("utf-8-sig").rstrip("\r\n") for _ in range(2))
    if not first:
        raise InputError("path", str(path), "a header and at least one row", "check that the download is complete.")
    separator = max("\t,; ", key=lambda s: (header.count(s), s == "\t"))
    head, row = (next(csv.reader([line], delimiter=separator)) for line in (header, first))
    if head and head[-1] == "" and len(head) == len(row) + 1:
        head = head[:-1]
    if len(row) - len(head) not in (0, 1):
        raise InputError(
            "path",
            f"{len(head)} fields in the header and {len(row)} in the first row of {path.name}",
            "as many, or one less in the header",
            "check that the file is a matrix with one header line.",
        )
    head = [""] * (len(row) - len(head)) + head
    if n_labels is None:
        n_labels = max(1, next((i for i, field in enumerate(row) if _is_number(field)), len(row)))
    if len(head) <= n_labels:
        raise InputError("path", str(path), "columns of numbers", "check the separator and the file.")
    return Layout(separator, tuple(head[:n_labels]), tuple(head[n_labels:]))


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


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
    line = 2
    with open_text(path) as stream:
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
        rows = list(csv.reader(io.StringIO(text.decode()), delimiter=layout.separator))
        _check_width(rows, n_fields, name, line)
        values = "\n".join(layout.separator.join(r[n_labels:]) for r in rows) + "\n"
        inner = _parse(values.encode(), Layout(layout.separator, (), layout.names), name, line)
        return Block([tuple(r[:n_labels]) for r in rows], inner.values)
    if starts is None:
        rows = [r.split(layout.separator) for r in plain.decode().splitlines()]
        _check_width(rows, n_fields, name, line)
    assert starts is not None and ends is not None
    labels = [
        tuple(plain[i:j].decode() for i, j in zip(a, b, strict=True))
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
            "missing values and text columns are not part of a count matrix; see n_labels.",
        )
    matrix = sparse.csr_matrix((value.astype(np.float32), (row, column)), shape=starts.shape)
    matrix.eliminate_zeros()
    return matrix
