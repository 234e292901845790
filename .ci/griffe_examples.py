"""For the API reference: the examples of the docstrings here, in the form that griffe shows as code."""

import re

import griffe


class Examples(griffe.Extension):
    """Renames the section "Example:" to "Examples:", and fences a doctest that stands in no section."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            fenced = re.sub(r"^>>> .*(?:\n\S.*)*", r"```pycon\n\g<0>\n```", text, flags=re.MULTILINE)
            obj.docstring.value = fenced
