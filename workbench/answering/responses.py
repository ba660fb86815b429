"""What an answer is kept under: everything that shaped it."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch
import transformers

from workbench.answering.answers import Staged
from workbench.answering.request import Generation, Prepared
from workbench.answering.stage import Stage, stage_to_json
from workbench.answering.store import FORMAT, Entry
from workbench.core import named
from workbench.models.identity import identity
from workbench.runtime.decoding import Decoding

SHAPED = ("text", "token_ids", "prompt_tokens", "finish_reason", "said", "passages", "notes")  # of an answer, kept


def entry(key: str, answer: Generation, scope: str = "", question: str = "", vector: bytes = b"") -> Entry:
    """What is kept of an answer that was just made."""
    kept = {name: value for name, value in asdict(answer).items() if name in SHAPED}
    return Entry(key, json.dumps(kept), time.time(), scope, question, vector)


def key_of(variant: Staged, asked: Prepared, settings: Decoding, ids: Sequence[int] | None = None) -> str:
    """Hash of everything that shapes an answer.

    Weights, the prompt's tokens, how tokens are chosen (the seed, too), every stage and what it reads, the engine, the
    versions of the libraries, and whose request it is.

    Args:
        variant: who is asked.
        asked: what.
        settings: with what the stages want.
        ids: other tokens instead of those asked.
    """
    stages = [each for each in variant.stages if type(each).known is Stage.known]
    facts = [
        *(FORMAT, torch.__version__, transformers.__version__, identity(variant.model)),
        *(asked.ids if ids is None else ids, settings.model_dump(), named.to_json(variant.engine, "engine")),
        *([[stage_to_json(each), each.reads] for each in stages], sorted(variant.end_tokens), asked.request.salt),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
