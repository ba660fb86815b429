"""Exports as others read them: plain transformers, in a process that does not know the workbench."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES
from elsewhere import divergence, read
from safetensors.torch import load_file
from torch import Tensor, nn

import workbench as wb
from workbench.analysis import verification
from workbench.analysis.verification import Verification, verify_export
from workbench.core.errors import Corrupt, InvalidInput, NotAvailable
from workbench.models import export, interchange, sharing
from workbench.models.interchange.bits import from_int32, to_int32
from workbench.models.packed import (
    Bits4Linear,
    FP8Linear,
    GroupLinear,
    Int8DynamicLinear,
    Int8Linear,
    LLMInt8Linear,
    Packed,
    PackedLinear,
    SemiStructuredLinear,
    dense_weight,
    linear_layers,
    replace_module,
)
from workbench.models.packed.groups import stored_scale, stored_zero
from workbench.steps import quantize

IDS = torch.arange(3, 40)[None]
Pack = Callable[[int, nn.Module], nn.Module]


def replaced(base: wb.Variant, pack: Pack) -> wb.Variant:
    """The variant with every linear layer but the head packed; the layers are numbered for mixtures."""
    model = sharing.share(base.model)
    for number, (path, layer) in enumerate(list(linear_layers(model))):
        replace_module(model, path, pack(number, layer))
    return dataclasses.replace(base, model=model)


def plain(kind: type[PackedLinear], **options: object) -> Pack:
    return lambda _, layer: kind.pack(dense_weight(layer), layer.bias, **options)


def grouped(bits: int, group: int, zeros: str) -> Pack:
    """Rounds to the nearest; zero points are in the "middle", "whole" numbers or "real" ones."""

    def pack(_: int, layer: nn.Module) -> nn.Module:
        weight = dense_weight(layer)
        out, columns = weight.shape
        size = group or columns
        parts = nn.functional.pad(weight, (0, -columns % size)).view(out, -1, size)
        low, high = parts.amin(-1).clamp(max=-1e-3), parts.amax(-1).clamp(min=1e-3)
        if zeros == "middle":
            scale = stored_scale(torch.maximum(-low, high) / (2 ** (bits - 1) - 0.5))
            zero = torch.full_like(scale, 2 ** (bits - 1))
        else:
            scale = stored_scale((high - low) / (2**bits - 1))
            zero = (-low / scale).round() if zeros == "whole" else stored_zero(-low / scale)
        codes = (parts / scale.unsqueeze(-1) + zero.unsqueeze(-1)).round().clamp(0, 2**bits - 1)
        codes = codes.to(torch.uint8).view(out, -1)[:, :columns]
        return GroupLinear.from_codes(codes, scale, zero, layer.bias, bits, group)

    return pack


def in_turn(*packs: Pack) -> Pack:
    return lambda number, layer: packs[number % len(packs)](number, layer)


def two_of_four(_: int, layer: nn.Module) -> nn.Module:
    fours = dense_weight(layer).reshape(-1, 4)
    smallest = fours.abs().topk(2, dim=1, largest=False).indices
    return SemiStructuredLinear.pack(fours.scatter(1, smallest, 0.0).view_as(dense_weight(layer)), layer.bias)


NF4 = plain(Bits4Linear, quant_type="nf4", block_size=64)
PACKED: dict[str, tuple[str, Pack, str]] = {  # name -> architecture, layers, how others see them
    "nf4": ("llama", NF4, "bitsandbytes nf4"),
    "nf4 transposed": ("gpt2", NF4, "bitsandbytes nf4"),
    "fp4": ("opt", plain(Bits4Linear, quant_type="fp4", block_size=32), "bitsandbytes fp4"),
    "llm.int8": ("llama", plain(LLMInt8Linear, threshold=6.0), "bitsandbytes int8"),
    "int8": ("opt", plain(Int8Linear), "compressed-tensors pack-quantized"),
    "int8 dynamic": ("gpt_neox", plain(Int8DynamicLinear), "compressed-tensors int-quantized"),
    "fp8": ("llama", plain(FP8Linear), "compressed-tensors float-quantized"),
    "2 bits": ("llama", grouped(2, 0, "middle"), "compressed-tensors pack-quantized"),
    "3 bits": ("qwen3", grouped(3, 32, "whole"), "compressed-tensors pack-quantized"),
    "4 bits": ("llama", grouped(4, 32, "middle"), "compressed-tensors pack-quantized"),
    "4 bits, zeros": ("gemma", grouped(4, 64, "whole"), "compressed-tensors pack-quantized"),
    "4 bits, large groups": ("opt", grouped(4, 256, "whole"), "compressed-tensors pack-quantized"),
    "mixed": ("llama", in_turn(grouped(2, 32, "middle"), grouped(4, 64, "middle"), plain(Int8DynamicLinear)),
              "compressed-tensors mixed-precision"),
    "mixed, zeros": ("llama", in_turn(grouped(3, 32, "whole"), grouped(4, 0, "middle")),
                     "compressed-tensors pack-quantized"),
    "mixed, more zeros": ("llama", in_turn(grouped(8, 32, "whole"), grouped(4, 64, "whole"), grouped(2, 32, "whole")),
                          "compressed-tensors mixed-precision"),
    "uneven groups": ("llama", in_turn(grouped(4, 0, "whole"), grouped(4, 32, "whole"), grouped(4, 128, "middle")),
                      "compressed-tensors pack-quantized"),
    "2:4": ("llama", two_of_four, "dense float32"),
}  # fmt: skip
NEAR: dict[str, tuple[str, Pack, str]] = {  # what no layout holds exactly
    "4 bits, real zeros": ("llama", grouped(4, 64, "real"), "compressed-tensors pack-quantized"),
    "mixed, real zeros": (
        "llama",
        in_turn(grouped(4, 64, "real"), grouped(2, 32, "middle")),
        "compressed-tensors mixed-precision",
    ),
    "8 bits, real zeros": ("llama", grouped(8, 64, "real"), "dense float32"),
    "int8 transposed": ("gpt2", plain(Int8Linear), "dense float32"),
    "two libraries": ("llama", in_turn(plain(Int8Linear), NF4, plain(Int8Linear)), "compressed-tensors pack-quantized"),
}


ROUNDS_ACTIVATIONS = {"int8 dynamic", "fp8", "mixed"}


@pytest.fixture(scope="module")
def exports(
    load_tiny: Callable[[str], wb.Variant], folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[wb.Variant, Path]]:
    """Everything that is saved here, by name."""
    root = tmp_path_factory.mktemp("exports")
    made = {name: load_tiny(name) for name in ARCHITECTURES}
    made["bfloat16"] = wb.load(folders["llama"], device="cpu", dtype="bfloat16")
    made |= {name: replaced(load_tiny(kind), pack) for name, (kind, pack, _) in (PACKED | NEAR).items()}
    made["tied head"] = load_tiny("qwen3").apply(quantize.Int8())
    made["own head"] = load_tiny("llama").apply(quantize.Int8())
    return {name: (variant, variant.save(root / str(number))) for number, (name, variant) in enumerate(made.items())}


@pytest.fixture(scope="module")
def elsewhere(
    exports: dict[str, tuple[wb.Variant, Path]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensor]:
    """What plain transformers makes of all of them: logits and unpacked weights."""
    folders = {name: folder for name, (_, folder) in exports.items()}
    packed = {name: list(layers(variant)) for name, (variant, _) in exports.items()}
    return read(folders, IDS, tmp_path_factory.mktemp("elsewhere"), packed)


def layers(variant: wb.Variant) -> dict[str, PackedLinear]:
    return {path: layer for path, layer in variant.model.named_modules() if isinstance(layer, PackedLinear)}


def logits(variant: wb.Variant) -> Tensor:
    with torch.no_grad():
        return variant.model(IDS).logits


# ---- others


@pytest.mark.parametrize("name", [*ARCHITECTURES, "bfloat16", "2:4"])
def test_dense_weights_give_the_same_logits_elsewhere(name: str, exports, elsewhere) -> None:
    assert torch.equal(elsewhere[f"{name}:logits"], logits(exports[name][0]))


@pytest.mark.parametrize("name", PACKED)
def test_packed_weights_are_the_same_elsewhere(name: str, exports, elsewhere) -> None:
    variant, folder = exports[name]
    assert verification.layout(folder, "float32")[0] == PACKED[name][2]
    note = interchange.note(json.loads((folder / export.MANIFEST).read_text())["packed"])
    assert note.startswith("They round the activations") if name in ROUNDS_ACTIVATIONS else note == ""
    for path, layer in layers(variant).items():
        torch.testing.assert_close(elsewhere[f"{name}:{path}"], layer.dequantize(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [*PACKED, *NEAR, "tied head", "own head"])
def test_packed_layers_answer_alike_elsewhere(name: str, exports, elsewhere) -> None:
    # Other kernels round activations in other places; float8 ones, which this CPU does not round at all, the most.
    most = 0.5 if name == "fp8" else 0.05
    assert divergence(logits(exports[name][0]), elsewhere[f"{name}:logits"]) < most


@pytest.mark.parametrize("name", NEAR)
def test_what_no_layout_holds_is_near_elsewhere_and_said_so(name: str, exports, elsewhere) -> None:
    variant, folder = exports[name]
    assert verification.layout(folder, "float32")[0] == NEAR[name][2]
    entries = json.loads((folder / export.MANIFEST).read_text())["packed"]
    said = (
        "in 8 bits with rounded zero points"
        if name in ("4 bits, real zeros", "mixed, real zeros")
        else "dense in 16 bits"
    )
    assert said in interchange.note(entries)
    for path, layer in layers(variant).items():
        step = layer.scale.max() / 32 if "real" in name and isinstance(layer, GroupLinear) else 0
        exact = layer.dequantize()
        difference = (elsewhere[f"{name}:{path}"] - exact).abs()
        assert (difference <= exact.abs() * 2**-10 + step + 1e-6).all(), path


def test_a_head_shared_with_the_embedding_is_one_table_elsewhere(exports) -> None:
    folder = exports["tied head"][1]
    tensors = load_file(folder / export.WEIGHTS)
    assert tensors["model.embed_tokens.weight"].dtype == torch.float16
    assert not {name for name in tensors if name.startswith("lm_head")}
    assert set(load_file(folder / export.OWN)) == {"lm_head.scale"}
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]


# ---- ourselves


@pytest.mark.parametrize("name", [*PACKED, *NEAR, "tied head", "own head", "bfloat16"])
def test_we_read_back_the_same_bits(name: str, exports) -> None:
    variant, folder = exports[name]
    again = wb.load(folder, device="cpu")
    assert torch.equal(logits(again), logits(variant))
    assert again.total_bytes == variant.total_bytes
    modules = dict(again.model.named_modules())
    for path, layer in variant.model.named_modules():
        if isinstance(layer, Packed):
            saved, found = layer.saved_tensors(), modules[path].saved_tensors()
            assert type(modules[path]) is type(layer)
            assert modules[path].options == layer.options
            assert {key: (value.dtype, value.tolist()) for key, value in saved.items()} == {
                key: (value.dtype, value.tolist()) for key, value in found.items()
            }
    assert not hasattr(again.model.config, "quantization_config")


def test_an_int8_code_that_16_bits_lose_is_kept_beside(base: wb.Variant, tmp_path: Path) -> None:
    """A row of tiny weights is below what float16 resolves, and the layer has values too large for it."""
    layer = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        layer.weight[0] *= 1e-7
        layer.weight[1] *= 1e6
    packed = Int8Linear.pack(layer.weight, None)
    form = interchange.dense(packed, transposed=False)
    assert form.tensors["weight"].dtype == torch.bfloat16
    read = interchange.READERS[form.reader](packed.options, form.tensors | form.own, form.facts)
    assert torch.equal(read["weight"], packed.weight)
    packed.scale *= 3  # a scale that is no bfloat16 number of its own: nothing can be found again from rounded weights
    packed.weight = torch.randint_like(packed.weight, -127, 127)
    form = interchange.dense(packed, transposed=True)
    read = interchange.READERS[form.reader](packed.options, form.tensors | form.own, form.facts)
    assert torch.equal(read["weight"], packed.weight)


def test_blocks_that_do_not_divide_a_row_are_cut(tmp_path: Path) -> None:
    layer = Bits4Linear.pack(torch.randn(64, 96), None, quant_type="nf4", block_size=64)
    form = interchange.bitsandbytes.forms({"layer": layer})["layer"]
    saved = layer.saved_tensors()
    assert json.loads(bytes(form.tensors["weight.quant_state.bitsandbytes__nf4"].tolist()))["blocksize"] == 32
    absmax = form.tensors["weight.absmax"]
    assert absmax.numel() == 64 * 96 // 32
    assert torch.equal(absmax, saved["scale"].repeat_interleave(absmax.numel() // saved["scale"].numel()))
    read = interchange.READERS[form.reader](layer.options, form.tensors, form.facts)
    assert torch.equal(read["scale"], saved["scale"])
    groups = nn.Linear(68, 32)  # a scale for every four columns would cost more than 16 bits a weight
    assert interchange.compressed.forms({"layer": grouped(4, 64, "middle")(0, groups)}) == {}
    odd = Bits4Linear.pack(torch.randn(30, 96), None, quant_type="nf4", block_size=64)
    assert interchange.bitsandbytes.forms({"layer": odd}) == {}


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_packed_as_compressed_tensors_packs_them(bits: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    for shape in ((1, 2), (3, 5), (7, 64), (33, 100)):
        codes = torch.randint(2**bits, shape, dtype=torch.uint8)
        words = to_int32(codes, bits)
        assert torch.equal(words, pack_to_int32((codes.int() - 2 ** (bits - 1)).to(torch.int8), bits))
        assert torch.equal(from_int32(words, bits, shape[1]), codes)
        assert torch.equal(from_int32(to_int32(codes.t(), bits), bits, shape[0]), codes.t())


def test_exports_of_format_1_are_still_read(base: wb.Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold the layers' own tensors under the names of the plain ones."""
    variant = base.apply(quantize.NF4())
    own = {f"{path}.{name}": tensor for path, layer in layers(variant).items()
           for name, tensor in layer.saved_tensors().items()}  # fmt: skip
    entries = {path: {"kind": "Bits4Linear", "options": layer.options} for path, layer in layers(variant).items()}
    old = interchange.Interchange(dict(variant.model.state_dict()) | own, entries=entries)
    monkeypatch.setattr(export, "write", lambda model: old)
    monkeypatch.setattr(export, "FORMAT", 1)
    again = wb.load(variant.save(tmp_path / "old"), device="cpu")
    assert torch.equal(logits(again), logits(variant))
    assert again.total_bytes == variant.total_bytes


def test_a_form_of_a_later_version_is_refused(base: wb.Variant) -> None:
    with pytest.raises(InvalidInput, match="'holographic'"):
        interchange.rebuild(base.model, {"lm_head": {"kind": "Int8Linear", "options": {}, "form": "holographic"}}, {})


# ---- verify_export


def test_verification_compares_both_readers(exports, tmp_path: Path) -> None:
    dense, packed = verify_export(exports["llama"][1]), verify_export(str(exports["tied head"][1]))
    assert dense.loads
    assert dense.bit_equal
    assert (dense.kl, dense.same_top, dense.max_difference) == (0.0, 1.0, 0.0)
    assert dense.format == "dense float32"
    assert dense.bytes == sum(file.stat().st_size for file in exports["llama"][1].iterdir())
    assert "the same logits bit for bit" in repr(dense)
    assert packed.loads
    assert not packed.bit_equal
    assert 0 < packed.kl < 0.05
    assert packed.same_top > 0.8
    assert packed.note == "Other readers see 1 of 15 packed layers dense in 16 bits."
    assert "KL" in repr(packed)
    assert "\n" not in repr(packed)


@pytest.mark.parametrize(
    ("child", "said"),
    [
        (
            "import sys; open(sys.argv[3] + '.error', 'w').write('OSError: no such thing.'); sys.exit(1)",
            "no such thing",
        ),
        ("import os; os.kill(os.getpid(), 9)", "code -9"),
        ("import time; time.sleep(60)", "within 1 s"),
    ],
    ids=["error", "killed", "slow"],
)
def test_what_goes_wrong_elsewhere_is_one_sentence(
    child: str, said: str, exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "CHILD", child)
    found = verify_export(exports["llama"][1], timeout=1)
    assert not found.loads
    assert found.kl is None
    assert said in found.problem
    assert found.problem.endswith(".")
    assert found.problem in repr(found)
    assert "\n" not in repr(found)


def test_logits_and_tokens_that_differ_are_a_problem(exports, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(torch.zeros(3, 4), [], 1.0), (torch.full((3, 4), torch.nan), None, 1.0)])

    def ask(folder: Path, ids: Tensor, *_: object) -> object:
        theirs, tokens, seconds = next(answers)
        return theirs, wb.load(folder).tokenizer.encode(verification.TEXT) if tokens is None else tokens, seconds

    monkeypatch.setattr(verification, "_ask", ask)
    assert "tokenizer" in verify_export(exports["llama"][1]).problem
    assert "logits" in verify_export(exports["llama"][1]).problem


def test_folders_that_are_no_export_or_damaged_are_refused(exports, folders, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path, folders["llama"]):
        with pytest.raises(InvalidInput, match="not an export"):
            verify_export(path)
    variant, _ = exports["nf4"]
    for name in (export.WEIGHTS, "config.json", export.MANIFEST):
        folder = variant.save(tmp_path / "damaged", overwrite=True)
        (folder / name).write_text("{}")
        with pytest.raises(Corrupt, match=name):
            verify_export(folder)
        (folder / name).unlink()
        with pytest.raises((Corrupt, InvalidInput)):
            verify_export(folder)


def test_a_missing_library_is_named(exports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification.util, "find_spec", lambda name: None)
    with pytest.raises(NotAvailable, match="pip install compressed-tensors"):
        verify_export(exports["int8"][1])


def test_a_verification_is_frozen() -> None:
    found = Verification(format="dense float32", bytes=1, loads=False, problem="It burnt.")
    with pytest.raises(ValueError, match="frozen"):
        found.loads = True
