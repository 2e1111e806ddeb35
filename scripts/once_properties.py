"""For the reference: methods under `penult.locking.Once` are read as properties, and shown so."""

from __future__ import annotations

from typing import Any

import griffe


class OnceProperties(griffe.Extension):
    """Turns such methods of a class into attributes with the label `property`."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Look at a class that was read."""
        for name, member in list(cls.members.items()):
            if not isinstance(member, griffe.Function):
                continue
            if all(str(one.value).rpartition(".")[2] != "Once" for one in member.decorators):
                continue
            found = griffe.Attribute(
                name,
                lineno=member.lineno,
                endlineno=member.endlineno,
                docstring=member.docstring,
                annotation=member.returns,
                parent=cls,
            )
            found.labels |= {"property"}
            cls.set_member(name, found)
