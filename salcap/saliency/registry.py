"""Saliency backbones by name: built in, registered at run time, from other packages' entry points, or a user's file."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, overload

from salcap.hashing import file_sha256
from salcap.saliency.baselines import Center, Random, Uniform
from salcap.saliency.model import SaliencyModel
from salcap.saliency.spectral_residual import SpectralResidual

ENTRY_POINT_GROUP = "salcap.saliency"

Factory = Callable[..., SaliencyModel]
F = TypeVar("F", bound=Factory)

_logger = logging.getLogger(__name__)


def _later(module: str, attribute: str) -> Factory:
    """A factory whose module is imported when it is first called."""

    def create(**options: Any) -> SaliencyModel:
        return getattr(importlib.import_module(f"salcap.saliency.{module}"), attribute)(**options)

    return create


_factories: dict[str, Factory] = {
    "attention_center": _later("teachers.attention_center", "AttentionCenter"),
    "center": Center,
    "effnet_teacher": _later("trainable", "effnet_teacher"),
    "fastgaze": _later("teachers.fastgaze", "FastGaze"),
    "glimpse": _later("teachers.glimpse", "Glimpse"),
    "random": Random,
    "spectral_residual": SpectralResidual,
    "uniform": Uniform,
    "uva_net": _later("trainable", "uva_net"),
    "uva_net_32": _later("trainable", "uva_net_32"),
}
_broken: dict[str, Exception] = {}
_tried: set[tuple[str, str]] = set()


def create_saliency(name: str, **options: Any) -> SaliencyModel:
    """Make a saliency backbone, ready to predict.

    Args:
        name: registered (see `list_saliency`), or ``"path/to/file.py:factory"``, a function or class in a Python file.
            The latter runs that file's code as if it were your own program: name only files you trust. Names that
            come with a downloaded model pass `check_registered_name` first.
        options: keyword arguments of the backbone's factory.

    Returns:
        The backbone, on the CPU, in evaluation mode.

    Raises:
        ValueError: an unknown name (the closest one is given), or a plug-in or file that could not be loaded, or whose
            factory failed (with its reason).
        TypeError: an option that the backbone does not take, or a factory that makes something else.
        ImportError: a backbone whose optional package is not installed; it names the extra.
        FileNotFoundError: a backbone whose weights are not on this machine and cannot be downloaded.
    """
    model = _create(name, _find_factory(name), options)
    if _is_file(name):
        model.source_sha256 = file_sha256(_source_path(name))
    return model


def check_saliency(name: str) -> None:
    """Raise the ValueError that `create_saliency` would for a name, and make nothing; a file that it names is run."""
    _find_factory(name)


def _find_factory(name: str) -> Factory:
    if _is_file(name):
        return _load_factory(name)
    if name not in _factories:
        _load_plugins()
    if name not in _factories:
        if name in _broken:
            reason = _broken[name]
            raise ValueError(f"saliency backbone {name!r} is unavailable: {_describe(reason)}") from reason
        close = difflib.get_close_matches(str(name), _factories, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown saliency backbone {name!r}, allowed: {', '.join(sorted(_factories))}{hint}")
    return _factories[name]


def check_registered_name(name: str) -> str:
    """Give back the name of a backbone unless it is one of code in a file, which no downloaded model may name.

    Raises:
        ValueError: ``name`` has the form ``"path/to/file.py:factory"``.
    """
    if _is_file(name):
        raise ValueError(f"saliency backbone {name!r} is code in a file: only you can name it, not a model's config")
    return name


def _is_file(name: str) -> bool:
    return ".py:" in str(name)


def _create(name: str, factory: Factory, options: dict[str, Any]) -> SaliencyModel:
    try:
        model = factory(**options)
    except (TypeError, ValueError, ImportError, OSError):  # with words of their own
        raise
    except Exception as error:
        raise ValueError(f"saliency backbone {name!r} cannot be made: {_describe(error)}") from error
    if not isinstance(model, SaliencyModel):
        raise TypeError(
            f"the factory of saliency backbone {name!r} must make a SaliencyModel, got {type(model).__name__}"
        )
    model.name = name
    return model.eval()


def list_saliency() -> tuple[str, ...]:
    """Which backbones there are; `saliency_errors` has those that are installed but broken.

    Returns:
        Names that `create_saliency` takes, sorted.
    """
    _load_plugins()
    return tuple(sorted(_factories))


def saliency_errors() -> dict[str, str]:
    """Plug-ins that could not be loaded: name to reason."""
    _load_plugins()
    return {name: _describe(reason) for name, reason in _broken.items()}


@overload
def register_saliency(name: str) -> Callable[[F], F]: ...
@overload
def register_saliency(name: str, factory: F) -> F: ...
def register_saliency(name: str, factory: F | None = None) -> F | Callable[[F], F]:
    """Add a backbone: ``register_saliency("mine", Mine)``, or as a decorator ``@register_saliency("mine")``.

    Args:
        name: what `create_saliency` is to know it by.
        factory: a `SaliencyModel` subclass or function that makes one; its keyword arguments become options.

    Returns:
        The factory; without one the decorator, which returns what it decorates.

    Raises:
        ValueError: the name is taken by another factory.
        TypeError: a name that is no text, or a factory that cannot be called.
    """
    if factory is None:
        return lambda decorated: register_saliency(name, decorated)
    if not isinstance(name, str) or not name or not callable(factory):
        raise TypeError(f"register_saliency takes a name and a callable, got {name!r} and {factory!r}")
    if _factories.get(name, factory) is not factory:
        raise ValueError(f"saliency backbone {name!r} is already registered, as {_factories[name]!r}")
    _factories[name] = factory
    return factory


def _load_plugins() -> None:
    """Load each entry point once; one that fails is noted and does not stop the others."""
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if (entry_point.name, entry_point.value) in _tried:
            continue
        _tried.add((entry_point.name, entry_point.value))
        try:
            register_saliency(entry_point.name, entry_point.load())
        except Exception as error:
            _broken[entry_point.name] = error
            _logger.warning(
                "saliency backbone %r (%s) is unavailable: %s", entry_point.name, entry_point.value, _describe(error)
            )


def _source_path(name: str) -> Path:
    return Path(name.rpartition(":")[0]).expanduser().resolve()


def _load_factory(name: str) -> Factory:
    """Run the file of ``"path/to/file.py:factory"`` and take the factory out of it."""
    path, attribute = _source_path(name), name.rpartition(":")[2]
    if not path.is_file():
        raise ValueError(f"saliency backbone {name!r}: there is no file {path}")
    # A name of its own for each file: two users' model.py do not meet, and classes in it can be pickled.
    module_name = f"salcap_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"saliency backbone {name!r}: {path} cannot be imported; its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ValueError(f"saliency backbone {name!r} is unavailable: {_describe(error)}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = difflib.get_close_matches(attribute, names, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"saliency backbone {name!r}: {path} has no function or class {attribute!r}{hint}")
    return factory


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
