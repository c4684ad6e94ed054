"""The package explains fields by a comment behind each; the API pages show these."""

import ast
from typing import Any

import griffe


class Comments(griffe.Extension):
    """Lists the commented fields of records and of base classes under "Attributes"."""

    def on_class_members(
        self, *, node: ast.AST | griffe.ObjectNode, cls: griffe.Class, **_: Any
    ) -> None:
        """Called for every class, once its fields are known."""
        if not cls.docstring or not any(
            str(b).endswith(("NamedTuple", "Module")) for b in cls.bases
        ):
            return
        found = []
        for name, field in cls.attributes.items():
            line = cls.lines_collection[cls.filepath][(field.endlineno or 1) - 1]
            _, _, comment = line.partition("  # ")
            if comment and field.annotation:
                found.append(f"    {name}: {comment[0].upper()}{comment[1:]}.")
        if found:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(found)
