"""Ollama's Modelfile beside a GGUF file: its chat template from what the tokenizer's own writes."""

from dataclasses import dataclass
from os.path import commonprefix

from transformers import PreTrainedTokenizerBase

from workbench.core.errors import InvalidInput
from workbench.models.tokens import Message, render
from workbench.runtime.decoding import Decoding
from workbench.serving.smoke import WEIGHTS

MEANT = ('"""', "{{", "}}")  # by a Modelfile or a template in it
SYSTEM, USER, ANSWER, AGAIN = "Sy0st1em", "Us2e3r", "An4sw5er", "Ag6a7in"  # which no template says by itself


@dataclass(frozen=True)
class Turns:
    """What stands around the texts of a conversation: before, between and after.

    Attributes:
        system: what a system message is where none is given; empty if nothing.
        before_system: text.
        before_user: text, behind a system message and without one.
        before_answer: text.
        after_answer: text.
    """

    system: str
    before_system: str
    before_user: str
    before_answer: str
    after_answer: str


def modelfile(tokenizer: PreTrainedTokenizerBase, context: int, decoding: Decoding) -> str:
    """A Modelfile with the settings of a variant.

    Where the tokenizer's template is not of the plain kind (texts between fixed marks), or writes what means something
    to a Modelfile, no template is written: Ollama then takes the one in the file, if it knows it.

    Source: https://docs.ollama.com/modelfile. It was compared with the tokenizer's own template, not tried in Ollama.
    """
    lines = [f"FROM ./{WEIGHTS}", f"PARAMETER num_ctx {context}", f"PARAMETER num_predict {decoding.max_new_tokens}"]
    lines += [f"PARAMETER temperature {decoding.temperature:g}", f"PARAMETER top_p {decoding.top_p:g}"]
    lines.append(f"PARAMETER seed {decoding.seed}")
    turns = found(tokenizer)
    if turns is None:
        lines.append("# The chat template is not of the kind that could be written here: Ollama may answer otherwise.")
    else:
        lines.append(f'TEMPLATE """{template(turns)}"""')
        lines += [f'SYSTEM """{turns.system}"""'] if turns.system else []
    return "\n".join([*lines, ""])


def template(turns: Turns) -> str:
    """As Ollama reads it: once for every question and answer of a conversation."""
    return (
        f"{{{{ if .System }}}}{turns.before_system}{{{{ .System }}}}{turns.after_answer}{{{{ end }}}}"
        f"{turns.before_user}{{{{ .Prompt }}}}{turns.before_answer}{{{{ .Response }}}}{turns.after_answer}"
    )


def found(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """The fixed texts of a tokenizer's template; None where it is of another kind."""
    if not tokenizer.chat_template:
        return None
    user, told = Message(role="user", content=USER), Message(role="system", content=SYSTEM)
    more = [user, Message(role="assistant", content=ANSWER), Message(role="user", content=AGAIN)]
    try:
        alone, with_system, longer = (render(tokenizer, each) for each in ([user], [told, user], more))
    except InvalidInput:
        return None
    if any(each not in longer for each in (USER, ANSWER, AGAIN)) or SYSTEM not in with_system:
        return None
    start = str(tokenizer.bos_token or "")
    opening, _, before_answer = alone.partition(USER)
    before_system, _, rest = with_system.partition(SYSTEM)
    between = rest.partition(USER)[0]
    behind = longer.partition(ANSWER)[2].partition(AGAIN)[0]
    after = _shared_end(between, behind)
    raise NotImplementedError(start, opening, before_answer, before_system, after, commonprefix)
