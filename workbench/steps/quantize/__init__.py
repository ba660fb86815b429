"""Quantization: the same weights in fewer bits."""

from workbench.steps.quantize.formats import FP4, FP8, NF4, Int8, Int8Dynamic, LLMInt8  # isort: skip  # panels keep this order
from workbench.steps.quantize.smooth import SmoothQuant  # isort: skip
from workbench.steps.quantize.rounding import RTN  # isort: skip
from workbench.steps.quantize.gptq import GPTQ  # isort: skip
from workbench.steps.quantize.awq import AWQ  # isort: skip
from workbench.steps.quantize.hqq import HQQ  # isort: skip
from workbench.steps.quantize.signround import SignRound  # isort: skip
from workbench.steps.quantize.rotate import Rotate  # isort: skip
from workbench.steps.quantize.budget import Budget  # isort: skip
from workbench.steps.quantize.cache import KVCache  # isort: skip

__all__ = [
    "AWQ",
    "FP4",
    "FP8",
    "GPTQ",
    "HQQ",
    "NF4",
    "RTN",
    "Budget",
    "Int8",
    "Int8Dynamic",
    "KVCache",
    "LLMInt8",
    "Rotate",
    "SignRound",
    "SmoothQuant",
]
