"""Directives that write pages from the catalogue and the cards, so that they cannot go stale.

``study-tables``: the curated studies, one table per collection. ``synonym-table``: other names of drugs, tissues and cancers.
``model-cards``: one section per model.
"""

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

GEO = "https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc="
COLUMNS = {
    "number": "id",
    "key": "key",
    "series": "accession",
    "tissue": "tissue",
    "cancer": "cancer_type",
    "drug": "drug",
    "therapy": "therapy_type",
    "cells": "n_cells",
    "sensitive": "n_sensitive",
    "floor F1": "floor",
}


def cell(value, link=None):
    text = "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    if link and text:
        paragraph = nodes.paragraph()
        paragraph += nodes.reference("", text, refuri=link)
        return nodes.entry("", paragraph)
    return nodes.entry("", nodes.paragraph(text=text))


def table(heads, rows):
    group = nodes.tgroup(cols=len(heads))
    group += [nodes.colspec(colwidth=1) for _ in heads]
    head, body = nodes.thead(), nodes.tbody()
    group += [head, body]
    for place, cells in [(head, [cell(h) for h in heads]), *((body, row) for row in rows)]:
        line = nodes.row()
        line += cells
        place += line
    box = nodes.container(classes=["wide"])
    box += nodes.table("", group)
    return box


def section(name, *content):
    out = nodes.section(ids=[nodes.make_id(name)], names=[name])
    out += nodes.title(text=name)
    out += list(content)
    return out


class StudyTables(SphinxDirective):
    def run(self):
        import pandas as pd

        import scdrugmap as sd

        studies = sd.datasets.catalogue().reset_index()
        out = []
        for collection, rows in studies.groupby("collection", sort=False):
            lines = []
            for _, row in rows.iterrows():
                known = {k: None if pd.isna(row[k]) else row[k] for k in row.index}
                known = {k: int(v) if k.startswith("n_") and v is not None else v for k, v in known.items()}
                n, s = known["n_cells"], known["n_sensitive"]
                known["floor"] = f"{2 * s / (n + s):.2f}" if n and s is not None else None
                lines.append(
                    [
                        cell(known[c], GEO + known[c] if c == "accession" and str(known[c]).startswith("GSE") else None)
                        for c in COLUMNS.values()
                    ]
                )
            text = f"{len(rows)} data sets of {rows['accession'].nunique()} series."
            out.append(
                section(
                    f"{collection} collection".capitalize(), nodes.paragraph(text=text), table(list(COLUMNS), lines)
                )
            )
        return out


class SynonymTable(SphinxDirective):
    def run(self):
        from scdrugmap.datasets._catalogue import synonyms

        joined = synonyms().groupby(["column", "name"], sort=False)["synonym"].agg(", ".join).reset_index()
        out = []
        for column, rows in joined.groupby("column", sort=False):
            lines = [[cell(r["name"]), cell(r["synonym"])] for _, r in rows.iterrows()]
            out.append(
                section(
                    f"{column.replace('_', ' ')}s".capitalize(), table(["in the catalogue", "also found as"], lines)
                )
            )
        return out


class ModelCards(SphinxDirective):
    """Facts of each model as the registry holds them."""

    def run(self):
        import scdrugmap as sd

        return [self.one(sd.models.info(name)) for name in sd.models.list()["name"]]

    def one(self, card):
        def shown(value):
            if isinstance(value, tuple):
                return ", ".join(value)
            return {None: "not stated", True: "yes", False: "no"}.get(
                value, f"{value:,}" if type(value) is int else value
            )

        facts = {
            "what it is": card.architecture,
            "parameters": card.n_parameters,
            "output dimensions": card.dim,
            "reads genes as": card.gene_id,
            "genes in its vocabulary": card.vocab_size,
            "tokens per cell": card.max_length,
            "species": card.species,
            "sees": card.context,
            "official checkpoints": card.checkpoints,
            "licence of the weights": card.weights_licence,
            "commercial use": card.commercial,
            "access has to be asked for": card.gated,
            "paper": card.citation,
        }
        rows = [[cell(k), cell(shown(v))] for k, v in facts.items() if v not in (None, (), "") or k == "commercial use"]
        use = f'sd.tl.embed(adata, model="{card.name}")' if card.kind != "prompt" else (
            f'sd.tl.predict_response(adata, model="{card.name}", strategy="prompt")'
        )  # fmt: skip
        code = nodes.literal_block(use, use, language="python")
        if card.kind == "fitted":
            note = "A baseline: it is fitted on the cells that it is given (in a benchmark on the training cells of each fold)."
        elif card.kind == "prompt":
            note = "Asked over a network; each answer costs money, so look at sd.prompting.preview first."
        else:
            note = "The licence is shown, and has to be accepted, before anything is fetched."
        return section(card.name, nodes.paragraph(text=note), code, table(["fact", card.name], rows))


def setup(app):
    app.add_directive("study-tables", StudyTables)
    app.add_directive("synonym-table", SynonymTable)
    app.add_directive("model-cards", ModelCards)
    return {"parallel_read_safe": True}
