"""How quantities are shown: SI inside, formatted only here; and which way is better."""

from workbench.estimate import Estimate

# metric -> (title, unit inside, how many of the shown unit one SI unit is, shown unit, decimals)
METRICS: dict[str, tuple[str, str, float, str, int]] = {
    "ttft": ("First token", "s", 1e3, "ms", 0),
    "inter_token_latency": ("Time per token", "s", 1e3, "ms", 1),
    "inter_token_latency_p95": ("Slowest tokens, p95", "s", 1e3, "ms", 1),
    "throughput": ("Throughput", "tokens/s", 1, "tokens/s", 1),
    "prompt_tokens": ("Prompt", "tokens", 1, "tokens", 1),
    "answer_tokens": ("Answer", "tokens", 1, "tokens", 1),
    "peak_memory": ("Peak memory", "bytes", 1e-6, "MB", 0),
    "weight_bytes": ("Weights", "bytes", 1e-6, "MB", 0),
    "bits_per_weight": ("Bits per weight", "bits", 1, "", 2),
    "perplexity": ("Perplexity", "ratio", 1, "", 2),
    "kl_to_baseline": ("KL to baseline", "nats/token", 1, "nats", 4),
    "same_top_token": ("Same top token", "fraction", 100, "%", 1),
    "score": ("Task score", "fraction", 100, "%", 1),
    "flips": ("Answers flipped", "fraction", 100, "%", 1),
}


def title(metric: str) -> str:
    """The metric's name for people, its shown unit in brackets."""
    name, _, _, unit, _ = METRICS[metric]
    return f"{name} ({unit})" if unit else name


def shown(metric: str, value: float) -> float:
    """The value in the unit it is shown in."""
    return value * METRICS[metric][2]


def text(metric: str, estimate: Estimate) -> str:
    """Value and interval in the shown unit, such as ``61.5 [60.2, 63.0]``; exact values stand alone."""
    decimals = METRICS[metric][4]
    value, low, high = (
        f"{shown(metric, each):,.{decimals}f}" for each in (estimate.value, estimate.low, estimate.high)
    )
    return value if estimate.low == estimate.high else f"{value} [{low}, {high}]"


def size(count: float) -> str:
    """Bytes for people, such as ``135 MB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds for people, such as ``12 s`` or ``3 min 20 s``."""
    if seconds < 1:
        return "under 1 s"
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"
