"""For the API reference: converts the examples of docstrings to the form that griffe shows as code."""

import re

import griffe


class Examples(griffe.Extension):
    """Renames the section "Example:" to "Examples:", and fences doctests outside of sections."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            fenced = re.sub(r"^>>> .*(?:\n\S.*)*", r"```pycon\n\g<0>\n```", text, flags=re.MULTILINE)
            obj.docstring.value = fenced
