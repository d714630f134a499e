"""Leave internal classes and attributes, which no `__all__` exports, out of the API pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from griffe import Class, Expr, Extension, Module, Object


class OnlyPublic(Extension):
    """Leave out what users neither call nor import."""

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Remove the layers and weights that a network keeps as attributes without describing them."""
        for name, member in [*cls.members.items()]:
            if member.is_attribute and not member.docstring and str(member.value).startswith("nn."):
                cls.del_member(name)

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Replace a base class that no `__all__` exports by its own base classes."""
        parts = [*_parts(pkg)]
        public = {name for part in parts if isinstance(part, Module) for name in part.exports or ()}
        for part in parts:
            if isinstance(part, Class):
                part.bases = [*_visible(part, public)]


def _parts(parent: Object) -> Iterator[Object]:
    """Yield the modules and classes of a package."""
    yield parent
    for member in parent.members.values():
        if isinstance(member, Module | Class):
            yield from _parts(member)


def _visible(cls: Class, public: set[str | Any]) -> Iterator[str | Expr]:
    """Yield the base classes that are documented."""
    for base in cls.bases:
        path = base if isinstance(base, str) else base.canonical_path
        name = path.rpartition(".")[2]
        if path.startswith(cls.package.name + ".") and name not in public:
            found = cls.modules_collection[path]
            yield from _visible(found if isinstance(found, Class) else found.final_target, public)
        elif name != "Generic":
            yield base
