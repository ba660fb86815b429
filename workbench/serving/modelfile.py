"""Ollama's Modelfile beside a GGUF file, its chat template made of what the tokenizer's own writes around texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from workbench.core.errors import InvalidInput
from workbench.models.tokens import Message, render, start_tokens
from workbench.runtime.decoding import Decoding
from workbench.serving.smoke import WEIGHTS

MEANT = ('"""', "{{", "}}")  # by a Modelfile, or by a template in it
TOLD, ASKED, SAID, AGAIN = "Sy0st1em", "Us2e3r", "An4sw5er", "Ag6a7in"  # which no template says by itself


@dataclass(frozen=True)
class Turns:
    """The fixed texts of a conversation.

    Attributes:
        before_system: in front of a system message.
        after_system: behind it.
        before_user: in front of a question.
        before_answer: behind it.
        after_answer: behind an answer, where the conversation goes on.
        system: the system message where none is given; empty for none.
    """

    before_system: str
    after_system: str
    before_user: str
    before_answer: str
    after_answer: str
    system: str = ""

    def written(self, messages: Sequence[Message]) -> str:
        """A conversation as Ollama writes it with these texts."""
        text = ""
        if self.system and messages[0].role != "system":
            messages = [Message(role="system", content=self.system), *messages]
        for each in messages:
            match each.role:
                case "system":
                    text += f"{self.before_system}{each.content}{self.after_system}"
                case "user":
                    text += f"{self.before_user}{each.content}{self.before_answer}"
                case _:
                    text += f"{each.content}{self.after_answer}"
        return text

    def template(self) -> str:
        """The same in the language of Ollama's templates, which are filled once for every question and its answer."""
        system = f"{{{{ if .System }}}}{self.before_system}{{{{ .System }}}}{self.after_system}{{{{ end }}}}"
        question = f"{self.before_user}{{{{ .Prompt }}}}{self.before_answer}"
        return f"{system}{question}{{{{ .Response }}}}{self.after_answer}"


def modelfile(tokenizer: PreTrainedTokenizerBase, context: int, decoding: Decoding) -> str:
    """A Modelfile with the settings of a variant.

    Where the tokenizer's template does more than to put fixed texts around messages, or writes what means something to
    a Modelfile, no template is written: Ollama then takes the one in the file, if it knows its kind.

    Source: https://docs.ollama.com/modelfile. What it writes is compared with what the tokenizer writes; it was not
    tried in Ollama, which is no Python package.
    """
    lines = [f"FROM ./{WEIGHTS}", f"PARAMETER num_ctx {context}", f"PARAMETER num_predict {decoding.max_new_tokens}"]
    lines += [f"PARAMETER temperature {decoding.temperature!r}", f"PARAMETER top_p {decoding.top_p!r}"]
    lines.append(f"PARAMETER seed {decoding.seed}")
    turns = turns_of(tokenizer)
    if turns is None:
        lines.append("# The chat template is not of the kind that can be written here: Ollama may ask otherwise.")
    else:
        lines.append(f'TEMPLATE """{turns.template()}"""')
        lines += [f'SYSTEM """{turns.system}"""'] if turns.system else []
    return "\n".join([*lines, ""])


def turns_of(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """The fixed texts of a tokenizer's template; None where it is of another kind or cannot be quoted."""
    if not tokenizer.chat_template:
        return None
    user = Message(role="user", content=ASKED)
    with_system = [Message(role="system", content=TOLD), user]
    longer = [user, Message(role="assistant", content=SAID), Message(role="user", content=AGAIN)]
    asked = ([user], with_system, longer)
    try:
        alone, told, all_turns = (render(tokenizer, each) for each in asked)
    except InvalidInput:
        return None
    opening, _, before_answer = alone.partition(ASKED)
    before_system, _, rest = told.partition(TOLD)
    first, again = rest.partition(ASKED)[0], all_turns.partition(SAID)[2].partition(AGAIN)[0]
    begun = str(tokenizer.decode(start_tokens(tokenizer)))  # llama.cpp puts it there by itself
    defaulted = opening.startswith(before_system) and opening.endswith(first) and len(opening) > len(first)
    before_user = _turn(_common_end(first, again), before_system) if defaulted else opening.removeprefix(begun)
    turns = Turns(
        before_system=before_system.removeprefix(begun),
        after_system=first.removesuffix(before_user),
        before_user=before_user,
        before_answer=before_answer,
        after_answer=again.removesuffix(before_user),
        system=opening[len(before_system) : -len(first)] if defaulted else "",
    )
    if any(f"{begun}{turns.written(each)}" != render(tokenizer, each) for each in asked):
        return None
    return turns if _quotable(turns.system) and _quotable(_bare(turns)) else None


def _bare(turns: Turns) -> str:
    parts = replace(turns, system="")
    return "".join(vars(parts).values())


def _quotable(text: str) -> bool:
    """Whether a text means nothing to a Modelfile, between its quotation marks."""
    plain = all(each.isprintable() or each in "\n\t" for each in text)
    return plain and not any(each in text for each in MEANT) and not text.startswith('"') and not text.endswith('"')


def _turn(text: str, opening: str) -> str:
    """The end of a text from where it begins most as another turn does."""
    shared = [_alike(text[at:], opening) for at in range(len(text))]
    return text[shared.index(max(shared)) :] if shared else text


def _common_end(one: str, other: str) -> str:
    """The longest text that both end with."""
    return one[len(one) - _alike(one[::-1], other[::-1]) :]


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
