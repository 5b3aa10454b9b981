"""The methods that a stage can combine, by the names that configs use."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from salcap.distill.methods.base import Context, Method
from salcap.distill.methods.collaborative import Collaborative
from salcap.distill.methods.features import Generative, Statistics
from salcap.distill.methods.maps import Coupled, Fused, GroundTruth, Soft
from salcap.distill.methods.see_little import SeeLittle

METHODS: dict[str, Callable[..., Method]] = {
    "collaborative": Collaborative,
    "coupled": Coupled,
    "fused": Fused,
    "generative": Generative,
    "ground_truth": GroundTruth,
    "see_little": SeeLittle,
    "soft": Soft,
    "statistics": Statistics,
}


def create_method(name: str, context: Context, options: dict[str, Any]) -> Method:
    """Build a method by its name.

    Raises:
        ValueError: an unknown name, or options that the method does not take.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown method {name!r}, allowed: {', '.join(sorted(METHODS))}{hint}")
    try:
        return METHODS[name](context, **options)
    except TypeError as error:
        raise ValueError(f"method {name!r} does not take {options}: {error}") from error


__all__ = ["METHODS", "Context", "Method", "create_method"]
