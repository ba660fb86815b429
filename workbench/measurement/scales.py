"""Every metric: its name for people, its units inside and as shown."""

from workbench.core.estimate import Estimate

# metric -> (title, unit inside, how many of the shown unit one SI unit is, shown unit, decimals)
METRICS: dict[str, tuple[str, str, float, str, int]] = {
    "ttft": ("First token", "s", 1e3, "ms", 0),
    "inter_token_latency": ("Time per token", "s", 1e3, "ms", 1),
    "inter_token_latency_p95": ("Slowest tokens, p95", "s", 1e3, "ms", 1),
    "throughput": ("Throughput", "tokens/s", 1, "tokens/s", 1),
    "prompt_tokens": ("Prompt", "tokens", 1, "tokens", 1),
    "answer_tokens": ("Answer", "tokens", 1, "tokens", 1),
    "cost": ("Cost of a million tokens", "per million tokens", 1, "", 3),
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


def sentence(metric: str, estimate: Estimate) -> str:
    """The same with its unit, such as ``61.5 [60.2, 63.0] ms``."""
    return f"{text(metric, estimate)} {METRICS[metric][3]}".rstrip()
