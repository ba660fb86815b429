"""Documents looked up."""

from workbench.retrieval.index import STORES
from workbench.retrieval.ranking import Store

__all__ = ["STORES", "Store"]
