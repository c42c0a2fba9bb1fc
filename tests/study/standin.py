"""A mirror of everything that the study fetches, on loopback: simulated studies in the published layout, tiny random checkpoints.

Labels are given per sample. Every sample has a programme of its own, which is strong, and resistance moves few genes a little:
who divides cells at random recognises samples, who holds whole samples out sees what little there is.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scdrugmap import datasets
from scdrugmap.download import find
from scdrugmap.genes import packaged_table

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import official_layouts as layouts

#: Nine studies in three tissues; those of GSE131984 share their sensitive cells.
STUDIES = (
    "GSE131984_JQ1", "GSE131984_Pac", "GSE131984_JQ1Pac", "GSE140440", "GSE163836",
    "GSE152469", "GSE111014_pre", "GSE164551", "GSE153697",
)  # fmt: skip
#: Two data sets of the validation, which are the samples of one archive of GEO; their labels are a person's.
EXTERNAL = ("GSE223779_crizotinib", "GSE223779_alectinib")
WRITERS: dict[str, Any] = {
    "tgpt-64": functools.partial(layouts.tgpt, positions=64), "scbert-panglao": layouts.scbert, "geneformer-v1-10m": functools.partial(layouts.geneformer, version=1),
    "celllm": layouts.celllm, "scfoundation": layouts.scfoundation, "scgpt-human": layouts.scgpt,
    "cellplm-20230926": layouts.cellplm, "uce-4-layer": functools.partial(layouts.uce, dim=20, heads=20), "llama38b": layouts.llama,
}  # fmt: skip
ACCEPT = {"scfoundation": {"non_commercial": True}, "llama38b": {"gated": True}}
MODELS = {
    "tgpt": "tgpt-64", "scbert": "scbert-panglao", "geneformer": "geneformer-v1-10m", "celllm": "celllm",
    "scfoundation": "scfoundation", "scgpt": "scgpt-human", "cellplm": "cellplm-20230926", "uce": "uce-4-layer",
    "llama38b": "llama38b",
}  # fmt: skip
N_GENES, N_CELLS = 60, 24


def symbols() -> tuple[list[str], list[str]]:
    """Approved symbols and their Ensembl ids."""
    table = packaged_table()
    pairs = sorted((s, e) for s, e in zip(table["symbol"], table["ensembl_id"], strict=True) if s and e and s.isalnum())
    chosen = [pairs[i] for i in np.random.default_rng(5).permutation(len(pairs))[: N_GENES + 4]]
    return [s for s, _ in chosen], [e for _, e in chosen]


def write_studies(folder: Path) -> dict[str, Path]:
    """Tab-delimited matrices: barcode, condition, counts."""
    genes = symbols()[0][:N_GENES]
    rng = np.random.default_rng(7)
    base, shift = rng.normal(1.0, 0.7, N_GENES), np.zeros(N_GENES)
    shift[:8] = 0.25
    out, controls = {}, {}
    for key in STUDIES:
        row = datasets.info(key)
        series = base + rng.normal(0, 0.3, N_GENES)
        lines = ["\t".join(f'"{h}"' for h in ("Cell_barcode", "Condition", *genes))]
        for label in ("sensitive", "resistant"):
            shared = label == "sensitive" and bool(row["shared_control"])
            if shared and row["accession"] in controls:
                lines += controls[row["accession"]]
                continue
            mean = series + rng.normal(0, 0.8, N_GENES) + shift * (label == "resistant")
            counts = rng.poisson(np.exp(mean + rng.normal(0, 0.15, (N_CELLS, N_GENES))))
            name = row["accession"] if shared else key
            cells = ["\t".join([f"{name}{label[:1]}{i}", label, *map(str, c)]) for i, c in enumerate(counts)]
            if shared:
                controls[row["accession"]] = cells
            lines += cells
        out[key] = folder / "datasets" / key / row["matrix"]
        out[key].parent.mkdir(parents=True)
        out[key].write_text("\n".join(lines) + "\n")
    return out


def write_archive(folder: Path) -> None:
    """An archive of GEO with one text matrix per sample, genes in rows, and the table of labels that a person would make."""
    genes = symbols()[0][:N_GENES]
    rng = np.random.default_rng(8)
    base, lines = rng.normal(1.0, 0.7, N_GENES), ["dataset,sample,response"]
    target = folder / "datasets" / "GSE223779_geo" / "GSE223779_RAW.tar"
    target.parent.mkdir(parents=True)
    with tarfile.open(target, "w") as archive:
        for i in range(8):
            resistant, key = i % 2, EXTERNAL[i // 4]
            mean = base + rng.normal(0, 0.5, N_GENES) + 1.5 * resistant * (np.arange(N_GENES) < 12)
            counts = rng.poisson(np.exp(mean), (N_CELLS, N_GENES)).T
            rows = [",".join(["", *("".join(rng.choice(list("ACGT"), 16)) for _ in range(N_CELLS))])]
            rows += [",".join([gene, *map(str, c)]) for gene, c in zip(genes, counts, strict=True)]
            content = gzip.compress("\n".join(rows).encode())
            member = tarfile.TarInfo(f"GSM70{i}_P{i}.counts.csv.gz")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
            lines.append(f"{key},GSM70{i},{'resistant' if resistant else 'sensitive'}")
    (folder.parent / "labels.csv").write_text("\n".join(lines) + "\n")


def write_checkpoints(folder: Path) -> None:
    """Official layouts over the genes of the studies."""
    names, ensembl = symbols()
    before = {k: getattr(layouts, k) for k in ("VOCABULARY", "ENSEMBL", "NOVEL", "RETIRED", "RENAMED")}
    try:
        layouts.VOCABULARY, layouts.NOVEL, layouts.RETIRED = names[:N_GENES], names[N_GENES:-1], names[-1]
        layouts.RENAMED, layouts.ENSEMBL = names[1], dict(zip(names, ensembl, strict=True))
        for key, write in WRITERS.items():
            target = folder / "checkpoints" / key
            target.mkdir(parents=True)
            write(target)
    finally:
        for name, value in before.items():
            setattr(layouts, name, value)


def write_registry(mirror: Path, target: Path, base: str) -> None:
    """Registry with the digests of what the mirror holds."""
    target.mkdir()
    for kind in ("datasets", "checkpoints"):
        entries = {}
        for folder in sorted((mirror / kind).iterdir()):
            files = [
                {"name": (name := str(p.relative_to(folder))), "urls": [f"{base}/{kind}/{folder.name}/{name}"],
                 "size": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest(), "grade": "A"}
                for p in sorted(folder.rglob("*")) if p.is_file()
            ]  # fmt: skip
            about = {"title": folder.name, "licence": "made up for a test", "source": f"{base}/{kind}"}
            entries[folder.name] = about | ACCEPT.get(folder.name, {}) | {"files": files}
        if kind == "datasets":  # gene names are looked up there where it was fetched
            found = find("datasets", "hgnc")
            entries["hgnc"] = found.model_dump(mode="json", exclude={"kind", "key"})
        for model, key in MODELS.items():
            if key in entries:
                entries[key] |= {"model": model}
        (target / f"{kind}.yaml").write_text(yaml.safe_dump(entries))


class Mirror(http.server.ThreadingHTTPServer):
    """Serves a folder and counts what is asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        mirror = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(folder))

            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                mirror.asked[self.path] += 1
                super().do_GET()

        super().__init__(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed on purpose leave no trace in the output."""


def served(folder: Path) -> Iterator[tuple[Mirror, Path]]:
    """Write the mirror, serve it, and yield it with the folder of its registry."""
    write_studies(folder / "mirror")
    write_archive(folder / "mirror")
    write_checkpoints(folder / "mirror")
    mirror = Mirror(folder / "mirror")
    threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    write_registry(folder / "mirror", folder / "registry", mirror.base)
    try:
        yield mirror, folder / "registry"
    finally:
        mirror.shutdown()
        mirror.server_close()


#: The command line over another registry, for processes that may be killed.
CHILD = """
import sys
from pathlib import Path
from scdrugmap.download import catalog
catalog.REGISTRY_FOLDER = Path(sys.argv.pop(1))
from scdrugmap.cli import main
main()
"""
