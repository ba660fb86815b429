"""From raw measurements to a run's metrics: each function gives the run with more estimates and their samples."""

from collections.abc import Mapping, Sequence

from workbench.core import estimate as estimates
from workbench.core.estimate import Estimate
from workbench.measurement.latency import Timing, requests
from workbench.measurement.likelihood import Likelihood
from workbench.measurement.memory import bits_per_weight, peak_memory
from workbench.measurement.runs import Run
from workbench.measurement.scores import Scored
from workbench.tasks.task import Task, Text
from workbench.variant import Variant


def with_memory(run: Run, variant: Variant, task: Task | Text, new_tokens: int) -> Run:
    """Weight bytes, bits a weight, and the peak of one request."""
    prompt = requests(variant, task, 1)[0]
    return _with(
        run,
        {
            "weight_bytes": Estimate.exact(variant.total_bytes, "bytes"),
            "peak_memory": Estimate.exact(peak_memory(variant, prompt, new_tokens), "bytes"),
            "bits_per_weight": Estimate.exact(bits_per_weight(variant), "bits"),
        },
    )


def with_likelihood(run: Run, found: Likelihood, baseline: bool) -> Run:
    """Perplexity and, for any but the baseline, KL and agreement a token; spans are what is resampled.

    With another vocabulary there is no divergence, and a note says why.
    """
    nll = estimates.ratio_of_sums(found.nll, found.tokens, "nats/token")
    measured = {"perplexity": estimates.exponential(nll)}
    columns = {"nll": found.nll, "tokens": found.tokens}
    if found.kl is None or found.same_top is None:
        note = "Another vocabulary: fewer tokens to choose from lower the perplexity by themselves; KL is left out."
        return _with(run.model_copy(update={"notes": [*run.notes, note]}), measured, _floats(columns))
    if not baseline:
        measured["kl_to_baseline"] = estimates.ratio_of_sums(found.kl, found.tokens, "nats/token")
        measured["same_top_token"] = estimates.ratio_of_sums(found.same_top, found.tokens, "fraction")
    return _with(run, measured, _floats(columns | {"kl": found.kl, "same_top": found.same_top}))


def with_timing(run: Run, timings: Sequence[Timing]) -> Run:
    """Time to first token, time a token (median and 95th percentile) and throughput, over all rounds so far."""
    samples = {
        "ttft": [timing.ttft for timing in timings],
        "inter_token": [gap for timing in timings for gap in timing.inter_token],
        "inter_token_median": [timing.token_seconds for timing in timings if timing.inter_token],
        "throughput": [timing.throughput for timing in timings],
    }
    measured = {
        "ttft": estimates.median(samples["ttft"], "s"),
        "throughput": estimates.median(samples["throughput"], "tokens/s"),
    }
    if samples["inter_token"]:  # an endpoint may end with its first token, whatever was asked for
        measured["inter_token_latency"] = estimates.median(samples["inter_token_median"], "s")
        measured["inter_token_latency_p95"] = estimates.quantile(samples["inter_token"], 0.95, "s")
    return _with(run, measured, samples)


def with_scores(run: Run, found: Scored, baseline: Run, prices: tuple[float, float] | None = None) -> Run:
    """The task score, the tokens it took and, against a baseline, the share of examples whose correctness changed.

    Args:
        run: that is added to.
        found: the scores; none where the task is scored by likelihoods and there are none.
        baseline: the run of the baseline.
        prices: of a million tokens of prompt and of answer, where they are known.
    """
    if not found.scores:
        note = "The task is scored by the likelihood of its choices, which an endpoint does not give: it has no score."
        return run.model_copy(update={"notes": [*run.notes, note]})
    measured = {"score": estimates.mean(found.scores, "fraction")}
    samples = {"score": found.scores}
    if found.answers:
        samples["prompt_tokens"] = [float(each.prompt_tokens) for each in found.answers]
        samples["answer_tokens"] = [float(each.spent) for each in found.answers]
        measured |= {name: estimates.mean(samples[name], "tokens") for name in ("prompt_tokens", "answer_tokens")}
        if prices:
            pairs = list(zip(samples["prompt_tokens"], samples["answer_tokens"], strict=True))
            samples["cost"] = [prompt * prices[0] + answer * prices[1] for prompt, answer in pairs]
            tokens = [prompt + answer for prompt, answer in pairs]
            measured["cost"] = estimates.ratio_of_sums(samples["cost"], tokens, "per million tokens")
    before = baseline.samples.get("score")
    if before is not None:
        flipped = [float((after >= 0.5) != (b >= 0.5)) for after, b in zip(found.scores, before, strict=True)]
        measured["flips"] = estimates.mean(flipped, "fraction")
    return _with(run, measured, samples)


def _floats(columns: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {name: list(map(float, values)) for name, values in columns.items()}


def _with(run: Run, found: dict[str, Estimate], samples: dict[str, list[float]] | None = None) -> Run:
    return run.model_copy(update={"estimates": run.estimates | found, "samples": run.samples | (samples or {})})
