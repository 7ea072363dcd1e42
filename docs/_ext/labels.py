"""Make statement labels links everywhere: in prose, in code spans, in formula blocks, in docstrings.

A label that no page of theory/ explains is a warning, and so fails the build.  The dot between title and label of a
heading is dropped, and the table of contents beside a page shows no labels.
"""

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

LABEL = re.compile(r"(?<![\w#/-])((?:def|lem|prop|thm|false)-[a-z0-9]+(?:-[a-z0-9]+)*)(?![\w-])")
CODE = {"python", "pycon", "pycon3", "bash", "console", "shell", "default"}


class LabelLinks(SphinxTransform):
    """Replace each label in the text by a reference to its section."""

    default_priority = 450

    def apply(self, **kwargs):
        """Walk over all text of the document."""
        for title in self.document.findall(nodes.title):
            if len(title) > 1 and isinstance(title[-1], nodes.literal) and LABEL.fullmatch(title[-1].astext()):
                title.replace(title[-2], nodes.Text(title[-2].astext().rstrip("· \n") + " "))
        for text in list(self.document.findall(nodes.Text)):
            if LABEL.search(text) and not self._is_code_or_link(text):
                block = text.parent
                if isinstance(block, nodes.literal_block):
                    block.rawsource = ""  # parsed, not to be highlighted
                elif isinstance(block, nodes.literal):
                    if LABEL.fullmatch(text):
                        block.replace_self(self._link(text))
                    continue
                parts = LABEL.split(text)
                block.replace(text, [self._link(p) if i % 2 else nodes.Text(p) for i, p in enumerate(parts) if p])

    def _link(self, label):
        link = addnodes.pending_xref(
            "", refdomain="std", reftype="ref", reftarget=str(label), refexplicit=True, refwarn=True,
            refdoc=self.env.docname,
        )  # fmt: skip
        link += nodes.inline(label, label)
        return link

    def _is_code_or_link(self, node):
        while node := node.parent:
            if isinstance(node, (nodes.reference, addnodes.pending_xref, nodes.title, nodes.raw, nodes.doctest_block,
                                 nodes.math, nodes.math_block, addnodes.desc_signature, nodes.comment)):  # fmt: skip
                return True
            if isinstance(node, nodes.literal_block) and node.get("language") in CODE:
                return True
        return False


def _short_contents(app, pagename, templatename, context, doctree):
    if context.get("toc"):
        context["toc"] = re.sub(rf"\s*<code[^>]*>(<span[^>]*>)?{LABEL.pattern}(</span>)?</code>", "", context["toc"])


def setup(app):
    """Register the transform."""
    app.add_transform(LabelLinks)
    app.connect("html-page-context", _short_contents, priority=400)
    return {"parallel_read_safe": True}
