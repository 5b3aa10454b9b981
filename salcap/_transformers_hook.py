"""Makes the bundled captioner known to transformers' Auto classes, without importing transformers for it.

transformers offers no entry point for that, and importing its model classes takes seconds. So registration waits
until something imports them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# module of transformers -> module of ours that registers itself with it when imported
_REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": "salcap.captioners.mini.configuration",
    "transformers.models.auto.modeling_auto": "salcap.captioners.mini.modeling",
}


class _AfterImport(MetaPathFinder):
    """Runs a registration once its module has been executed."""

    def __init__(self) -> None:
        self.waiting = dict(_REGISTRATIONS)
        self._searching: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.waiting or fullname in self._searching:
            return None
        self._searching.add(fullname)  # the other finders are asked, not this one again
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching.discard(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            ours = self.waiting.pop(fullname, None)
            if ours is not None:
                import_module(ours)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Register now what transformers has already loaded, and the rest when it loads it."""
    finder = _AfterImport()
    for theirs, ours in _REGISTRATIONS.items():
        if theirs in sys.modules:
            del finder.waiting[theirs]
            import_module(ours)
    if finder.waiting and not any(isinstance(f, _AfterImport) for f in sys.meta_path):
        sys.meta_path.insert(0, finder)
