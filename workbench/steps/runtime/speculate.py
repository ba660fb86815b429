"""Several tokens a pass, drafted by the prompt itself or by a smaller model."""

from collections.abc import Callable, Sequence
from typing import ClassVar
from weakref import WeakKeyDictionary, ref

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.answering.request import Request
from workbench.core.errors import InvalidInput, NotAvailable
from workbench.core.progress import Progress
from workbench.models import sharing
from workbench.recipe import REGISTRY
from workbench.runtime.drafts import GOOD, WORTH, replay
from workbench.runtime.engine import Eager
from workbench.runtime.rows import forgets
from workbench.runtime.speculative import RARE
from workbench.runtime.speculative import Speculate as Lookup
from workbench.runtime.trial import way_of
from workbench.step import Forecast, Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant, live, load

_drafts: "WeakKeyDictionary[PreTrainedModel, dict[str, Callable[[], PreTrainedModel | None]]]" = WeakKeyDictionary()


class Drafted(Lookup):
    """Drafts of a smaller model with the same vocabulary. It stands here, for a draft is a variant.

    Attributes:
        draft: name of a variant, a step that makes the draft of the variant itself, a hub id or a path.
    """

    draft: str = Field(default="", max_length=200)

    def fitted(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> "Drafted":
        """Find or make the draft.

        Raises:
            InvalidInput: it has another vocabulary, or what one of the two has read cannot be taken back.
            NotAvailable: there is no such draft.
        """
        if self.smaller(model) is None:
            _drafts.setdefault(model, {})[self.draft] = find_draft(self.draft, model, tokenizer, progress)
        super().fitted(model, tokenizer, progress)
        return self

    def smaller(self, model: PreTrainedModel) -> PreTrainedModel | None:
        """The draft; none once its variant was closed."""
        found = _drafts.get(model, {}).get(self.draft)
        return found() if found else None

    def held_bytes(self, model: PreTrainedModel) -> int:
        """Of a draft that belongs to no variant: what it does not share with the model."""
        draft = self.smaller(model)
        if draft is None or isinstance(_drafts[model][self.draft], ref):
            return super().held_bytes(model)
        shared = sharing.storages(model)
        own = sum(size for address, size in sharing.storages(draft).items() if address not in shared)
        return super().held_bytes(model) + own


def find_draft(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress
) -> Callable[[], PreTrainedModel | None]:
    """A live variant's model while it is open, or a model that is held: made by a step, or read.

    Raises:
        InvalidInput: it is the model itself, or has another vocabulary or device.
        NotAvailable: there is no such draft.
    """
    named = [each for each in live() if each.name == name]
    if named:
        found = named[-1]
    elif name in REGISTRY:
        if REGISTRY[name].needs_data:
            raise InvalidInput(f"{name} needs data: apply it to a variant, and name that as the draft.")
        found = Variant(model, tokenizer, "draft", "draft").apply(REGISTRY[name](), None, progress)
    else:
        try:
            found = load(name, device=str(model.device), dtype=model.dtype)
        except NotAvailable:
            raise NotAvailable(
                f"There is no draft '{name}': name a variant that is open, a step such as quantize.RTN, a model folder "
                "or a hub id."
            ) from None
    draft = found.model
    if draft is model:
        raise InvalidInput(f"Draft '{name}' is the model itself: name a smaller one, such as quantize.RTN.")
    if found.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise InvalidInput(
            f"Draft '{name}' has another vocabulary, so its tokens mean nothing here: choose one of the same family."
        )
    if draft.device != model.device:
        raise InvalidInput(f"Draft '{name}' is on {draft.device} and the model on {model.device}: load both on one.")
    if not forgets(draft, way_of(draft)):
        raise InvalidInput(f"Draft '{name}' cannot take back tokens that it has read: choose another one.")
    return ref(draft) if named else lambda: draft


class Speculate(Step):
    """Answers with several tokens a pass where a draft guesses them right.

    What follows is guessed, checked in one pass, and taken as far as it is right; the answer stays that of one token a
    pass. By default the guess is what followed the same tokens in the prompt or the answer before
    (https://github.com/apoorvumang/prompt-lookup-decoding): it costs nothing and helps where answers repeat, such as
    quotes, rewriting, code and extraction. It does not help free text, where it switches itself off and on again. A
    smaller model as the draft (Leviathan et al., 2023) guesses everywhere, but costs a pass for every token: it pays
    only when it is several times faster and mostly right. Several requests at once, and samples, are decoded as before.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2211.17192"
    caveat: ClassVar[str] = "not faster: too few drafted tokens were right, so drafting switched itself off"
    folded: ClassVar[tuple[str, ...]] = ("match",)
    tokens: int = Field(default=3, ge=1, le=8, description="Most tokens that are drafted at once.")
    match: int = Field(default=3, ge=2, le=16, description="How many tokens must be the same before any are looked up.")
    draft: str = Field(
        default="",
        max_length=200,
        description="Name of a variant, a step such as quantize.RTN, a hub id or a path; empty to look drafts up.",
        json_schema_extra={"names": "variants"},
    )

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Change the engine only.

        Raises:
            InvalidInput: the draft has another vocabulary, or tokens that were read cannot be taken back.
            NotAvailable: there is no such draft.
        """
        before = variant.engine
        if type(before) not in (Eager, Lookup, Drafted):
            raise InvalidInput(f"'{variant.name}' is run by {before!r}: apply {self.label} to its parent.")
        fields = {name: getattr(before, name) for name in Eager.model_fields}
        fields |= {"tokens": self.tokens, "match": self.match}
        name = self.draft.strip()
        engine: Lookup = Drafted(**fields, draft=name) if name else Lookup(**fields)
        engine = engine.fitted(variant.model, variant.tokenizer, progress)
        return variant.derive(self, engine=engine, notes=self._notes(variant, engine, task))

    def forecast(self, variant: Variant) -> Forecast:
        """How long a trial takes is not known before; a draft that a step makes takes memory of its own."""
        made = REGISTRY.get(self.draft.strip())
        own = made().forecast(variant).owned_bytes if made is not None and issubclass(made, Step) else 0
        return Forecast(owned_bytes=own, weight_bytes=variant.total_bytes, seconds=None)

    def _notes(self, variant: Variant, engine: Lookup, task: Task | Text | None) -> Sequence[str]:
        """What it will take to win, and what looking up would give on the task's own answers."""
        costs = engine.costs(variant.model)
        ratios = ", ".join(f"{ratio:.2f}" for ratio in costs.more)
        drafts = f" and a drafted token {costs.draft:.2f}" if costs.draft else ""
        notes = [
            f"Passes with 2, 3, ... tokens cost {ratios} times one{drafts}: "
            + (
                f"drafts win from {costs.break_even:.0%} right on."
                if costs.hope >= WORTH
                else f"with {GOOD:.0%} right it would be {costs.hope:.2f} times as fast, so nothing is drafted."
            )
        ]
        if costs.slack >= RARE:
            notes.append(
                f"Choices closer than {costs.slack:.2g} are common with these weights: they are decided again after "
                "one token, but answers may differ from those without drafts, as they do in a batch."
            )
        if isinstance(task, Task) and task.calibration and not self.draft.strip():
            drafted, right, gain = expected(variant, engine, task)
            notes.append(
                f"On answers of {task.name}: {drafted} tokens would be looked up, {right} of them right: {gain:.2f} "
                "times as fast."
            )
        return notes


def expected(variant: Variant, engine: Lookup, task: Task, count: int = 16) -> tuple[int, int, float]:
    """What looking up would give if a variant answered as calibration examples do: no model is run.

    Returns:
        Tokens drafted, how many of them would be right, and tokens for the time of one.
    """
    costs, drafted, right, tokens, seconds = engine.costs(variant.model), 0, 0, 0, 0.0
    for example in task.calibration[:count]:
        prompt = variant.tokens(Request.example(task, example))
        answer = variant.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        for made, good in replay(prompt, answer, engine.match, engine.tokens):
            drafted, right, tokens = drafted + made, right + good, tokens + 1 + good
            seconds += costs.of(1 + made)
    return drafted, right, tokens / seconds if seconds else 1.0
