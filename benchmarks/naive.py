"""The script a user would write without the workbench's comparison: one variant a process, lm-eval for the scores.

    python benchmarks/naive.py base|NF4|Int8|Int8Dynamic

Prints one JSON line. The steps themselves are the workbench's, so that both sides measure the same model.
"""

import json
import logging
import math
import sys
import time
import warnings

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import workbench as wb
from workbench.answering.request import Request
from workbench.models.tokens import encode_text, render
from workbench.steps import quantize

EXAMPLES, ROUNDS, NEW_TOKENS, BATCH = 16, 8, 16, 8


def main(name: str) -> None:
    """Load, apply, time, score."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    variant = wb.load(device="cpu")
    if name != "base":
        variant = variant.apply(getattr(quantize, name)())
    task = wb.read_task("data/tickets")
    examples = task.test[:EXAMPLES]
    tokenizer = variant.tokenizer
    texts = [render(tokenizer, Request.of(task.prompt(example)).messages) for example in examples]

    speeds, firsts = [], []
    for text in texts[: ROUNDS + 1]:  # the first warms up
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        clock = [time.perf_counter()]
        for tokens in (1, NEW_TOKENS):
            variant.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
            )
            clock.append(time.perf_counter())
        firsts.append(clock[1] - clock[0])
        speeds.append((clock[2] - clock[1] - firsts[-1]) / (NEW_TOKENS - 1))

    scorer = HFLM(pretrained=variant.model, tokenizer=tokenizer, batch_size=BATCH)
    requests = [
        (
            (text, example.answer),
            tokenizer(text, add_special_tokens=False)["input_ids"],
            encode_text(tokenizer, example.answer),
        )
        for text, example in zip(texts, examples, strict=True)
    ]
    found = scorer._loglikelihood_tokens(requests, disable_tqdm=True)
    nll, tokens = -sum(score for score, _ in found), sum(len(target) for _, _, target in requests)
    until = {"until": ["<|im_end|>"], "max_gen_toks": task.max_new_tokens, "do_sample": False}
    asked = [
        Instance(request_type="generate_until", doc={}, arguments=(text, until), idx=i) for i, text in enumerate(texts)
    ]
    answers = scorer.generate_until(asked, disable_tqdm=True)
    scores = [task.score(example, answer.strip()) for example, answer in zip(examples, answers, strict=True)]
    print(
        json.dumps(
            {
                "inter_token_latency": float(np.median(speeds[1:])),
                "ttft": float(np.median(firsts[1:])),
                "perplexity": math.exp(nll / tokens),
                "score": float(np.mean(scores)),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
