"""Saliency backbones by name: built in, registered at run time, or from other packages' entry points."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar, overload

from salcap.saliency.baselines import Center, Random, Uniform
from salcap.saliency.model import SaliencyModel
from salcap.saliency.spectral_residual import SpectralResidual

ENTRY_POINT_GROUP = "salcap.saliency"

Factory = Callable[..., SaliencyModel]
F = TypeVar("F", bound=Factory)

_logger = logging.getLogger(__name__)
_factories: dict[str, Factory] = {
    "center": Center,
    "random": Random,
    "spectral_residual": SpectralResidual,
    "uniform": Uniform,
}
_broken: dict[str, Exception] = {}
_tried: set[tuple[str, str]] = set()


def create_saliency(name: str, **options: Any) -> SaliencyModel:
    """Make a saliency backbone, ready to predict.

    Args:
        options: keyword arguments of the backbone's factory.

    Raises:
        ValueError: an unknown name (the closest one is given), or a plug-in that could not be loaded (with its reason).
        TypeError: an option that the backbone does not take, or a factory that makes something else.
    """
    if name not in _factories:
        _load_plugins()
    if name not in _factories:
        if name in _broken:
            reason = _broken[name]
            raise ValueError(f"saliency backbone {name!r} is unavailable: {_describe(reason)}") from reason
        close = difflib.get_close_matches(str(name), _factories, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown saliency backbone {name!r}, allowed: {', '.join(sorted(_factories))}{hint}")
    model = _factories[name](**options)
    if not isinstance(model, SaliencyModel):
        raise TypeError(
            f"the factory of saliency backbone {name!r} must make a SaliencyModel, got {type(model).__name__}"
        )
    model.name = name
    return model.eval()


def list_saliency() -> tuple[str, ...]:
    """Names that `create_saliency` takes, sorted; `saliency_errors` has those that are installed but broken."""
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
        factory: a `SaliencyModel` subclass or function that makes one; its keyword arguments become options.

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


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
