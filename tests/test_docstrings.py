"""Public classes' methods say what they do, and what `salcap` offers describes all that it takes, gives and raises.

Ruff sees to it that there are docstrings at all."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from typing import Any

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


SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$", re.M)


def interface() -> Iterator[tuple[str, Any]]:
    """Everything of ``salcap.__all__``, and its classes' public methods."""
    for name in salcap.__all__:
        value = getattr(salcap, name)
        yield name, getattr(value, "__wrapped__", value)
        for key, member in vars(value).items() if inspect.isclass(value) else ():
            member = getattr(member, "__func__", member)
            if inspect.isfunction(member) and not key.startswith("_"):
                yield f"{name}.{key}", member


def sections(thing: Any) -> dict[str, str]:
    """The text under each heading of a docstring."""
    parts = SECTION.split(inspect.cleandoc(thing.__doc__ or ""))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(text: str) -> set[str]:
    """What a section describes: names at the beginnings of its entries, several joined by commas."""
    return {name.strip() for entry in re.findall(r"^ {4}(\w[\w, ]*):", text, re.M) for name in entry.split(",")}


def raises(thing: Any) -> set[str]:
    """Names of the errors that a function, or the making of a class, raises itself."""
    code = [getattr(thing, name, None) for name in ("__init__", "__post_init__")] if inspect.isclass(thing) else [thing]
    written = [member for member in code if inspect.isfunction(member) and member.__code__.co_filename != "<string>"]
    nodes = [node for member in written for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(member))))]
    calls = [node.exc for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {ast.unparse(call.func) for call in calls}


def left_out(thing: Any) -> list[str]:
    """What a docstring does not describe: parameters, errors, what a function returns. One of a line may be enough."""
    told, is_class = sections(thing), inspect.isclass(thing)
    is_method = not is_class and "." in thing.__qualname__
    if is_method and not told:
        return []
    described = entries(told.get("Args", "")) | entries(told.get("Attributes", ""))
    signature = inspect.signature(thing)
    missing = [name for name in signature.parameters if name not in described | {"self", "cls"}]
    missing += sorted(raises(thing) - entries(told.get("Raises", "")))
    if (
        not is_class
        and not is_method
        and signature.return_annotation != "None"
        and not {"Returns", "Yields"} & set(told)
    ):
        missing.append("Returns")
    return missing


def test_the_interface_is_described_whole() -> None:
    found = dict(interface())
    assert {"Caption", "SaliencyCaptioner.caption", "caption_corpus", "pipeline"} <= set(found)
    assert {name: missing for name, thing in found.items() if (missing := left_out(thing))} == {}


def test_what_an_interface_leaves_out_is_found() -> None:
    def resize(size: int, factor: float, mode: str) -> int:
        """Resize.

        Args:
            size, mode: as they are.
        """
        if factor < 0:
            raise ValueError(f"factor must be above 0, got {factor}")
        return size

    resize.__qualname__ = "resize"
    assert left_out(resize) == ["factor", "ValueError", "Returns"]
