"""The optimizations, one family a module; panels, documents and tests read them from `families()`."""

from importlib import import_module
from pkgutil import iter_modules

from workbench.step import REGISTRY, Step

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def families() -> dict[str, list[type[Step]]]:
    """Every registered step by family, both in the order they were defined."""
    found: dict[str, list[type[Step]]] = {}
    for step in REGISTRY.values():
        found.setdefault(step.family(), []).append(step)
    return found
