"""The workbench in a notebook cell: `Bench`, and each step family's panel by name, such as `QuantizePanel(bench)`."""

from functools import partial
from typing import Any

from widgets.bench import Bench
from widgets.panel import Panel
from workbench.steps import families

__all__ = ["Bench", "Panel"]
NOUNS = {"RetrievalPanel": "RetrievePanel", "DistillPanel": "DistilPanel"}  # as people may well write them


def __getattr__(name: str) -> Any:
    """The panel of a family: ``FineTunePanel`` is the one of `workbench.steps.finetune`."""
    asked = NOUNS.get(name, name).lower()
    for family in families():
        if asked == f"{family.replace('_', '')}panel":
            return partial(Panel, family=family)
    raise AttributeError(f"module 'widgets' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, *(f"{family.title().replace('_', '')}Panel" for family in families())]
