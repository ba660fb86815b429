"""HTML of what a model reads and says: tokens told apart, passages with the words that were looked for."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from html import escape

from bm25s.stopwords import STOPWORDS_EN
from transformers import PreTrainedTokenizerBase

from widgets.parts.html import help_line
from workbench.answering.request import Generation, Passage, Request
from workbench.models.tokens import controls
from workbench.tasks.task import Example, Task

MOST_TOKENS = 1500  # shown of a prompt; the middle is left out
LONGEST_CHARACTER = 4  # tokens
MOST_WORDS = 2000  # of a context that are compared one by one
WORD = re.compile(r"\w{3,}")
WITH_SPACE = re.compile(r"\s*\S+")


def prompt(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], before: int) -> str:
    """The prompt with its tokens told apart, and how many more they are than before."""
    special = set(controls(tokenizer).values())
    half = MOST_TOKENS // 2
    shown = [*ids[:half], None, *ids[-half:]] if len(ids) > MOST_TOKENS else ids
    spans = []
    held: list[int] = []
    for number, token in enumerate(shown):
        if token is None:
            spans.append(f"<b> ... {len(ids) - 2 * half} tokens left out ... </b>")
            held = []
            continue
        held.append(token)
        piece = str(tokenizer.decode(held))
        if piece.endswith("\ufffd") and len(held) < LONGEST_CHARACTER:
            continue  # the rest of the character is in the next token
        kind = "wb-control" if token in special else f"wb-token{number % 2}"
        spans.append(f'<span class="{kind}">{escape(piece)}</span>')
        held = []
    more = len(ids) - before
    change = f", {abs(more)} {'more' if more > 0 else 'fewer'} than without this step" if more else ""
    said = f"The model reads {len(ids)} tokens{change}."
    return (
        f'{help_line(said)}<div class="wb-prompt" role="region" aria-label="What the model reads" tabindex="0">'
        f"{''.join(spans)}</div>"
    )


def passages(request: Request) -> str:
    """What was found, with scores, the question's words marked; and what stages say they did."""
    terms = {each.lower() for each in WORD.findall(request.query)} - set(STOPWORDS_EN)
    rows = "".join(
        f"<li><b>{escape(each.id)}</b> <span>{each.score:.3g}</span><div>{_marked(each.text, terms)}</div></li>"
        for each in request.passages
    )
    found = f'<ol class="wb-hits">{rows}</ol>' if rows else ""
    return found + "".join(help_line(each) for each in request.notes)


def removed(before: Sequence[Passage], after: Sequence[Passage]) -> str:
    """The context with what was taken away struck through."""
    if not before:
        return help_line("No context to shorten: a text before the question, a blank line between, or documents.")
    words, kept = (WITH_SPACE.findall("\n".join(each.text for each in found)) for found in (before, after))
    if len(words) > MOST_WORDS:
        return help_line(f"{len(words)} words of context became {len(kept)}: too many to show.")
    parts = []
    bare = [[word.strip() for word in each] for each in (words, kept)]
    for kind, start, end, _, _ in SequenceMatcher(None, *bare, autojunk=False).get_opcodes():
        text = escape("".join(words[start:end]))
        parts.append(text if kind == "equal" else f"<del>{text}</del>" if text else "")
    return f'<div class="wb-prompt" role="region" aria-label="What was removed" tabindex="0">{"".join(parts)}</div>'


def answers(question: str, said: Mapping[str, Generation]) -> str:
    """Answers to one question, by whose they are, with their lengths and times."""
    cells = [
        f"<td>{escape(each.text)}<div>{each.prompt_tokens} + {each.spent} tokens, first after {each.ttft:.2f} s, "
        f"all after {each.times[-1]:.2f} s</div>{''.join(map(help_line, each.notes))}</td>"
        for each in said.values()
    ]
    return _beside(["Question", *said], [[f"<td>{escape(question)}</td>", *cells]])


def side_by_side(task: Task, examples: Sequence[Example], said: Mapping[str, Sequence[Generation]]) -> str:
    """Answers to the same examples, by whose they are, with their scores and lengths."""
    rows = []
    for example, *found in zip(examples, *said.values(), strict=True):
        cells = [
            f"<td>{escape(each.text)}<div>{_score(task, example, each)}{each.prompt_tokens} + {each.spent} tokens"
            "</div></td>"
            for each in found
        ]
        rows.append([f"<td>{escape(example.prompt)}<div>gold: {escape(example.answer)}</div></td>", *cells])
    return _beside(["Example", *said], rows)


def _score(task: Task, example: Example, answer: Generation) -> str:
    """Of what was written; where the likelihood of choices is scored, there is none."""
    return "" if task.by_likelihood else f"score {task.score(example, answer.text.strip()):.2f}, "


def _beside(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already."""
    first = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    table = f'<table class="wb-report wb-beside"><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wb-wide" role="region" aria-label="Answers side by side" tabindex="0">{table}</div>'


def _marked(text: str, terms: set[str]) -> str:
    """Escaped text, the words that are among the terms marked."""
    parts, at = [], 0
    for found in WORD.finditer(text):
        if found[0].lower() in terms:
            parts += [escape(text[at : found.start()]), f"<mark>{escape(found[0])}</mark>"]
            at = found.end()
    return "".join([*parts, escape(text[at:])])
