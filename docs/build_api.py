"""What the API pages leave out: the layers inside networks, which no docstring describes."""

from __future__ import annotations

from typing import Any

from griffe import Class, Extension


class OutsideOfNetworks(Extension):
    """Remove the layers and weights that a network keeps as attributes without describing them."""

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Change a class once its members are known."""
        for name, member in [*cls.members.items()]:
            if member.is_attribute and not member.docstring and str(member.value).startswith("nn."):
                cls.del_member(name)
