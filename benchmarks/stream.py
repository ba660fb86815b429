"""What the chat pane costs: two variants streamed in turn with widgets against the same without, in a real kernel.

python benchmarks/stream.py
"""

import json

import nbformat
from common import ROOT, write_result
from nbclient import NotebookClient

from workbench.core.estimate import paired_ratio

TOKENS, ROUNDS = 64, 8
CELL = f"""
import json, time, warnings
warnings.simplefilter("ignore")
import workbench as wb
from workbench.steps import quantize
from widgets import Bench

base = wb.load(device="cpu")
int8 = base.apply(quantize.Int8())
bench = Bench(base, None)
bench.add(int8)
display(bench)
question = "Explain how the tides work, in detail."

def plain():
    streams = [v.stream(question, max_new_tokens={TOKENS}) for v in (base, int8)]
    count, started = 0, time.perf_counter()
    while streams:
        for stream in list(streams):
            if next(stream, None) is None:
                streams.remove(stream)
            else:
                count += 1
    return count / (time.perf_counter() - started)

def widgets():
    bench.chat.forget()
    bench.chat.length.value = {TOKENS}
    bench.chat.prompt.value = question
    started = time.perf_counter()
    bench.chat.ask()
    bench.wait()
    seconds = time.perf_counter() - started
    return sum(answer.tokens for answer in bench.chat.turns[-1].answers.values()) / seconds

plain(), widgets()
speeds = dict(plain=[], widgets=[])
for number in range({ROUNDS}):
    for name in ("plain", "widgets") if number % 2 else ("widgets", "plain"):
        speeds[name].append(globals()[name]())
print("RESULT", json.dumps(speeds))
"""


def main() -> None:
    """Run the cell in a kernel and compare the speeds round by round."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(ROOT)}}).execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[0].outputs)
    speeds = json.loads(printed.split("RESULT", 1)[1])
    ratio = paired_ratio(speeds["widgets"], speeds["plain"])
    write_result(
        "stream",
        {
            "tokens_per_second": {name: [round(each, 2) for each in values] for name, values in speeds.items()},
            "widgets_over_plain": [round(each, 4) for each in (ratio.value, ratio.low, ratio.high)],
        },
    )


if __name__ == "__main__":
    main()
