"""What a GPU refuses is refused, and what it does is counted: what the other tests of this folder rest on."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("gpu")


def there(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(*shape, device="cuda").to(dtype)


FAULTS: dict[str, Callable[[], Any]] = {
    "two devices": lambda: there(2) + torch.ones(2),
    "two devices in a list": lambda: torch.cat([there(2), torch.ones(2)]),
    "an index from there into what is here": lambda: torch.ones(2)[there(2, dtype=torch.int64)],
    "a generator of the CPU": lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
    "a product of integers": lambda: there(8, 8, dtype=torch.int8) @ there(8, 8, dtype=torch.int8),
    "a kernel of the CPU": lambda: torch.ops.aten._convert_weight_to_int4pack_for_cpu(there(32, 32).int(), 1),
    "too few rows": lambda: torch._int_mm(there(5, 16, dtype=torch.int8), there(16, 16, dtype=torch.int8).t()),
    "sums of float8": lambda: there(2, dtype=torch.float8_e4m3fn) + there(2, dtype=torch.float8_e4m3fn),
    "an array of numpy": lambda: there(2).numpy(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused(fault: str) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        FAULTS[fault]()


def test_not_refused() -> None:
    assert (there(2) * torch.tensor(3.0)).tolist() == [3.0, 3.0], "a number from here"
    assert there(2)[torch.tensor([1])].tolist() == [1.0], "an index from here"
    assert torch.rand(2, device="cuda", generator=torch.Generator("cuda").manual_seed(1)).device.type == "cuda"
    x = there(3).requires_grad_()
    (x.cpu().square().sum() * 2).backward()
    assert x.grad.tolist() == [4.0, 4.0, 4.0], "gradients come back to where they belong"
    made: list[Tensor] = []
    worker = threading.Thread(target=lambda: made.append(torch.tensor([1, 2], device="cuda")))
    worker.start()
    worker.join()
    assert made[0].device.type == "cuda"


def test_tied_weights_stay_tied_when_a_model_is_moved() -> None:
    one = torch.nn.Linear(4, 4)
    model = torch.nn.Sequential(one, torch.nn.Linear(4, 4))
    model[1].weight = one.weight
    model.to("cuda")
    assert model[1].weight is model[0].weight
    assert model[0].weight.device.type == "cuda"
    assert isinstance(model[0].weight, torch.nn.Parameter)


def test_counted(gpu: Any) -> None:
    if gpu is None:
        pytest.skip("A real GPU does not count.")
    x, mask = there(4, 4), there(4) > 0
    works: dict[str, tuple[Callable[[], Any], tuple[int, int, int]]] = {
        "a sum": (lambda: x + 1, (1, 0, 0)),
        "a view": (lambda: x.t()[1:], (0, 0, 0)),
        "a number": (lambda: float(x[0, 0]), (0, 1, 0)),
        "a list": (lambda: x.tolist(), (1, 1, 0)),
        "a mask": (lambda: x[mask], (1, 1, 0)),
        "a tensor from here": (lambda: torch.zeros(4).to("cuda"), (1, 0, 1)),
        "attention": (lambda: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]), (1, 0, 0)),
    }
    for name, (work, wanted) in works.items():
        with gpu.watched() as seen:
            work()
        assert tuple(sum(each.values()) for each in (seen.kernels, seen.waits, seen.copies)) == wanted, name


def test_memory_is_that_of_the_tensors_alive() -> None:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = there(1 << 20)
    view = kept[1:]
    assert torch.cuda.memory_allocated() - before == 4 << 20
    del kept
    assert torch.cuda.memory_allocated() - before == 4 << 20
    del view
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before >= 4 << 20
