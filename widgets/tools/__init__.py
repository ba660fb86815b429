"""What helps to find a step's settings or to see what it did: every module here is one, found by being there."""

from importlib import import_module
from pkgutil import iter_modules

from widgets.tool import Tool

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

TOOLS: list[type[Tool]] = sorted(Tool.kinds, key=lambda kind: kind.order)
