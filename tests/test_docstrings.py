"""Public classes' methods say what they do, themselves or in the class where they come from; ruff sees to the rest."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module

import salcap


def public_classes() -> Iterator[type]:
    for module in pkgutil.walk_packages(salcap.__path__, "salcap."):
        if not module.name.endswith("__main__"):
            for name, value in vars(import_module(module.name)).items():
                if inspect.isclass(value) and value.__module__ == module.name and not name.startswith("_"):
                    yield value


def undocumented(kind: type) -> list[str]:
    """Names of a class's public methods and properties that neither it nor one of its bases describes."""
    members = (property, classmethod, staticmethod)
    methods = [name for name, value in vars(kind).items() if inspect.isfunction(value) or isinstance(value, members)]
    public = [name for name in methods if not name.startswith("_")]
    told = {name for base in kind.__mro__ for name in public if getattr(vars(base).get(name), "__doc__", None)}
    return [f"{kind.__module__}.{kind.__name__}.{name}" for name in public if name not in told]


def test_every_public_method_is_described() -> None:
    classes = list(public_classes())
    assert salcap.SaliencyCaptioner in classes
    assert [name for kind in classes for name in undocumented(kind)] == []


def test_what_is_not_described_is_found() -> None:
    class Base:
        def said(self) -> None:
            """It is said here."""

    class Derived(Base):
        def said(self) -> None: ...

        @property
        def size(self) -> int:
            return 0

        @staticmethod
        def make() -> None: ...

        def _own(self) -> None: ...

    assert [name.rpartition(".")[2] for name in undocumented(Derived)] == ["size", "make"]
