"""The optimizations, one family a module; panels, documents and tests read them from `families()`."""

from importlib import import_module
from pkgutil import iter_modules

from workbench.recipe import REGISTRY
from workbench.step import Step

# in which people meet them; others follow
ORDER = ("prompt", "retrieve", "context", "output", "prune", "quantize", "finetune", "distil")
_found = [module.name for module in iter_modules(__path__)]
for _name in sorted(_found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
    import_module(f"{__name__}.{_name}")


def families() -> dict[str, list[type[Step]]]:
    """Every registered step by family, both in the order they were defined."""
    found: dict[str, list[type[Step]]] = {}
    for step in REGISTRY.values():
        assert issubclass(step, Step)
        found.setdefault(step.family(), []).append(step)
    return found
