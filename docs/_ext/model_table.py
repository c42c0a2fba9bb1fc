"""The directive ``model-table``: the registry as a table, so that the page cannot go stale."""

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


def table(columns, rows):
    """Return a docutils table of plain text; it reads the same under every parser."""
    group = nodes.tgroup(cols=len(columns))
    group += [nodes.colspec(colwidth=1) for _ in columns]
    head, body = nodes.thead(), nodes.tbody()
    group += [head, body]
    for place, cells in [(head, columns), *((body, row) for row in rows)]:
        line = nodes.row()
        line += [nodes.entry("", nodes.paragraph(text=str(cell))) for cell in cells]
        place += line
    return nodes.table("", group)


class ModelTable(SphinxDirective):
    def run(self):
        import scdrugmap as sd

        fields = ["name", "kind", "year", "dim", "gene_id", "context", "weights_licence"]
        frame = sd.models.list()[fields].astype(object)
        return [table(fields, frame.where(frame.notna(), "").to_numpy().tolist())]


def setup(app):
    app.add_directive("model-table", ModelTable)
    return {"parallel_read_safe": True}
