"""The directive ``model-table``: the registry as a table, so that the page cannot go stale."""

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


class ModelTable(SphinxDirective):
    def run(self):
        import scdrugmap as sd

        fields = ["name", "kind", "year", "dim", "gene_id", "context", "weights_licence"]
        table = sd.models.list()[fields].astype(object)
        lines = [".. list-table::", "   :header-rows: 1", ""]
        for row in [fields, *table.where(table.notna(), "").values.tolist()]:
            lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
        node = nodes.container()
        self.state.nested_parse(StringList(lines), self.content_offset, node)
        return node.children


def setup(app):
    app.add_directive("model-table", ModelTable)
    return {"parallel_read_safe": True}
