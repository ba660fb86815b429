"""Tokens a second of each packed format beside eager float32, one request, and where the time of a token goes.

Every variant decodes and reads a prompt of 512 tokens in turn. For each the products of all its layers are also timed
alone, and the bytes that a token reads at the bandwidth measured in the run: what no kernel can go below.

    python benchmarks/products.py
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/products.py --name products_avx2
"""

import argparse
import logging
import os
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from common import interleaved, read_bandwidth, write_result

import workbench as wb
from workbench.models.packed import linear_layers
from workbench.runtime.decoding import Decoding
from workbench.steps import quantize

STEPS: dict[str, wb.Step] = {
    "Int8": quantize.Int8(),
    "Int8Dynamic": quantize.Int8Dynamic(),
    "RTN, 4 bits, groups of 32": quantize.RTN(group_size=32),
    "RTN, 4 bits, groups of 64": quantize.RTN(),
    "GPTQ, 4 bits, groups of 64": quantize.GPTQ(),
    "RTN, 3 bits": quantize.RTN(bits=3),
    "NF4": quantize.NF4(),
}
PROMPT, TOKENS = 512, 12


class Heard:
    """Takes every token and wants more."""

    ended = watches = False

    def restrict(self, logits: Any) -> None:
        """Any token may come."""

    def take(self, token: int, chance: float | None) -> None:
        """Nothing is kept."""


def writing(variant: wb.Variant, ids: list[int], tokens: int) -> Callable[[], None]:
    """Decode so many tokens after a prompt."""
    settings = Decoding(max_new_tokens=tokens)

    def work() -> None:
        for _ in variant.engine.decode(variant.model, [ids], settings, [Heard()]):
            pass

    return work


def products(variant: wb.Variant) -> Callable[[], None]:
    """The products of a token alone, layer after layer."""
    layers = [layer for _, layer in linear_layers(variant.model, head=True)]
    rows = {columns: torch.randn(1, 1, columns) for columns in {columns_of(layer) for layer in layers}}
    pairs = [(layer, rows[columns_of(layer)]) for layer in layers]

    @torch.no_grad()
    def work() -> None:
        for layer, row in pairs:
            layer(row)

    return work


def columns_of(layer: Any) -> int:
    """Of a linear layer, dense or packed."""
    return int(layer.in_features)


def ratio(base: list[float], other: list[float]) -> list[float]:
    """How many times as fast, and the middle 95 % of resampled medians."""
    draws = np.random.default_rng(0).integers(len(base), size=(1000, len(base)))
    drawn = np.median(np.array(base)[draws], axis=1) / np.median(np.array(other)[draws], axis=1)
    return [round(float(each), 3) for each in (median(base) / median(other), *np.quantile(drawn, [0.025, 0.975]))]


def main() -> None:
    """One interleaved comparison on the default model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--name", default="products")
    parser.add_argument("--only", default="", help="names of formats begin with one of these, separated by |")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    base = wb.load(device="cpu")
    text = wb.read_text("data/prose", window=256, calibration=8, test=1)
    chosen = {name: step for name, step in STEPS.items() if name.startswith(tuple(asked.only.split("|")))}
    variants = {"float32": base} | {name: base.apply(step, text) for name, step in chosen.items()}
    ids = [int(each) for each in torch.arange(100, 100 + PROMPT)]
    writes = interleaved({name: writing(each, ids[:16], TOKENS + 1) for name, each in variants.items()}, asked.rounds)
    firsts = interleaved({name: writing(each, ids[:16], 1) for name, each in variants.items()}, asked.rounds)
    reads = interleaved({name: writing(each, ids, 1) for name, each in variants.items()}, max(2, asked.rounds // 2))
    alone = interleaved({name: products(each) for name, each in variants.items()}, asked.rounds)
    bandwidth = read_bandwidth()
    found = {}
    for name, variant in variants.items():
        seconds = (median(writes[name]) - median(firsts[name])) / TOKENS
        layers = [layer for _, layer in linear_layers(variant.model, head=True)]
        held = sum(each.nbytes for layer in layers for each in (*layer.parameters(), *layer.buffers()))
        found[name] = {
            "tokens/s": round(1 / seconds, 1),
            "decode, times float32": ratio(writes["float32"], writes[name]),
            "prefill of 512, tokens/s": round(PROMPT / median(reads[name])),
            "prefill, times float32": ratio(reads["float32"], reads[name]),
            "ms a token": round(1e3 * seconds, 2),
            "ms in products": round(1e3 * median(alone[name]), 2),
            "ms to read the weights at this bandwidth": round(1e3 * held / bandwidth, 2),
            "weights MB": round(held / 1e6, 1),
        }
    write_result(
        asked.name,
        {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "oneDNN at most": os.environ.get("ONEDNN_MAX_CPU_ISA", "everything"),
            "read bandwidth, GB/s": round(bandwidth / 1e9, 1),
            "variants": found,
        },
    )


if __name__ == "__main__":
    main()
