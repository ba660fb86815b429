"""The least time that a pass takes on a device: its bytes, its operations, what it starts; devices from data sheets."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from workbench.core.errors import InvalidInput
from workbench.runtime.footprint import Work
from workbench.runtime.probe import Device

__all__ = ["SHEETS", "Device", "Pass", "sheet"]

# Peaks without sparsity, which is half of what NVIDIA's sheets print. What `source` calls "not confirmed" could not be
# read on the maker's own page, only where it says. No sheet tells what starting an operation costs: 5 us is usual for a
# kernel of an eager GPU; what runs compiled as a whole is given none.
SHEETS: tuple[Device, ...] = (
    Device(
        name="H100 SXM",
        bandwidth=3.35e12,
        flops={"float32": 67e12, "bfloat16": 989e12, "float16": 989e12, "int8": 1979e12},
        call=5e-6,
        memory=80_000_000_000,
        source="NVIDIA H100 data sheet, https://www.nvidia.com/en-us/data-center/h100/; not confirmed there, but by a "
        "seller's copy, https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html",
    ),
    Device(
        name="H200 SXM",
        bandwidth=4.8e12,
        flops={"float32": 67e12, "bfloat16": 989e12, "float16": 989e12, "int8": 1979e12},
        call=5e-6,
        memory=141_000_000_000,
        source="NVIDIA H200 data sheet, https://www.nvidia.com/en-us/data-center/h200/; memory and bandwidth by "
        "https://github.com/NVIDIA/TensorRT-LLM/blob/main/docs/source/blogs/H200launch.md; arithmetic, as of an H100, "
        "not confirmed",
    ),
    Device(
        name="GeForce RTX 4090",
        bandwidth=1.008e12,
        flops={"float32": 82.6e12, "bfloat16": 165.2e12, "float16": 165.2e12, "int8": 660.6e12},
        call=5e-6,
        memory=24_000_000_000,
        source="NVIDIA Ada GPU architecture, "
        "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf; not confirmed there, "
        "but by https://waredb.com/processor/nvidia-geforce-rtx-4090",
    ),
    Device(
        name="TPU v5e",
        bandwidth=819e9,
        flops={"bfloat16": 197e12, "int8": 393e12},
        memory=16_000_000_000,
        source="Google Cloud documentation, TPU v5e, https://docs.cloud.google.com/tpu/docs/v5e",
    ),
    Device(
        name="FPGA card (AMD Alveo U280)",
        bandwidth=460e9,
        flops={"int8": 24.5e12},
        memory=8_000_000_000,
        source="AMD UG1393, HBM configuration and use, "
        "https://docs.amd.com/r/2023.1-English/ug1393-vitis-application-acceleration/HBM-Configuration-and-Use; "
        "arithmetic of its data sheet DS963 not confirmed",
    ),
    Device(
        name="Laptop (Apple M3 Pro)",
        bandwidth=150e9,  # its maker states no rate of floating-point operations
        memory=18_000_000_000,
        source="Apple, MacBook Pro (16-inch, Nov 2023) tech specs, https://support.apple.com/en-au/117737",
    ),
    Device(
        name="Phone (Snapdragon 8 Gen 3)",
        bandwidth=76.8e9,  # 64 bits of LPDDR5X at 4800 MHz, two transfers a cycle
        memory=12_000_000_000,  # of many telephones that have it
        source="Qualcomm, https://www.qualcomm.com/products/mobile/snapdragon/smartphones/"
        "snapdragon-8-series-mobile-platforms/snapdragon-8-gen-3-mobile-platform; not confirmed there, but bandwidth "
        "by https://gist.github.com/EwoutH/754fa40ad9ddc93d55084fc46569c759; memory is each telephone's",
    ),
)


def sheet(name: str) -> Device | None:
    """The row whose name holds these words, whatever their case."""
    wanted = name.casefold()
    return next((each for each in SHEETS if wanted in each.name.casefold()), None)


@dataclass(frozen=True)
class Pass:
    """What one pass moves, computes and starts.

    Attributes:
        weight_bytes: of weights, read once whatever the rows.
        other_bytes: of states, keys and values, read and written by all rows.
        flops: operations of the products of all rows.
        operations: started.
        kind: the type that is multiplied in, such as ``float32``.
        rows: side by side.
    """

    weight_bytes: int
    other_bytes: int
    flops: float
    operations: int
    kind: str
    rows: int = 1

    @classmethod
    def of(cls, work: Work, kind: str) -> "Pass":
        """What was counted."""
        return cls(work.weight_bytes, work.other_bytes, work.flops, work.operations, kind)

    def by(self, rows: int) -> "Pass":
        """The same pass by more rows: weights are read once for all of them."""
        more = rows / self.rows
        return replace(self, other_bytes=round(more * self.other_bytes), flops=more * self.flops, rows=rows)

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / max(1, self.weight_bytes + self.other_bytes)

    def reading(self, device: Device) -> float:
        """Seconds that its bytes take."""
        return (self.weight_bytes + self.other_bytes) / device.bandwidth

    def computing(self, device: Device) -> float:
        """Seconds that its operations take."""
        return self.flops / device.rate(self.kind)

    def starting(self, device: Device) -> float:
        """Seconds that starting its operations takes."""
        return self.operations * device.call

    def least(self, device: Device, calls: bool = True) -> float:
        """Seconds: the longer of reading and computing, and what is started besides or, on a GPU, meanwhile.

        Source: Williams et al., "Roofline", 2009, https://doi.org/10.1145/1498765.1498785.
        """
        work = max(self.reading(device), self.computing(device))
        if not calls:
            return work
        return max(work, self.starting(device)) if device.overlaps else work + self.starting(device)


def rows_of(devices: Iterable[str | Device]) -> tuple[Device, ...]:
    """Devices by themselves or by words of their name in `SHEETS`.

    Raises:
        InvalidInput: there is none of that name.
    """
    found = []
    for each in devices:
        known = each if isinstance(each, Device) else sheet(str(each))
        if known is None:
            names = ", ".join(row.name for row in SHEETS)
            raise InvalidInput(f"There is no data sheet of '{str(each)[:60]}' here: use one of {names}, or a Device.")
        found.append(known)
    return tuple(found)
