"""Prompt design: what the model is told and how it may answer, without touching a weight."""

from workbench.steps.prompt.wording import System, Template  # isort: skip  # panels keep this order
from workbench.steps.prompt.examples import FewShot  # isort: skip
from workbench.steps.prompt.reasoning import ChainOfThought, SelfConsistency  # isort: skip
from workbench.steps.prompt.constrain import Constrain  # isort: skip
from workbench.steps.prompt.search import Search  # isort: skip

__all__ = ["ChainOfThought", "Constrain", "FewShot", "Search", "SelfConsistency", "System", "Template"]
