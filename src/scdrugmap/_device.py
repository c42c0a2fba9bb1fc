"""The one choice of device and precision, and the engine: how a run computes, decided once and passed whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from scdrugmap._errors import InputError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "bfloat16", "float16")


def pick_device(device: str | None = None) -> torch.device:
    """Resolve a device and check that this machine has it.

    Parameters
    ----------
    device
        ``None`` follows ``settings.device``; ``"auto"`` is CUDA, then MPS, then the CPU.

    Raises
    ------
    InputError
        If the device is not there.

    Examples
    --------
    >>> pick_device("cpu")
    device(type='cpu')
    """
    import torch

    from scdrugmap.settings import settings

    name = device or settings.device
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(name)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        argument = "device" if device else "settings.device"
        why = str(error).splitlines()[0]
        raise InputError(argument, name, "a device of this machine", f"use device='auto' or 'cpu' ({why})") from None
    return resolved


def pick_precision(precision: str | None, device: torch.device) -> str:
    """Resolve the arithmetic of the networks.

    Parameters
    ----------
    precision
        ``None`` follows ``settings.precision``; ``"auto"`` is bfloat16 on CUDA and float32 elsewhere. Embedding chooses
        bfloat16 on a processor that has it, where it agrees with float32 on the first cells.
    device
        Where the network runs.

    Raises
    ------
    InputError
        For an unknown name.

    Examples
    --------
    >>> pick_precision("auto", pick_device("cpu"))
    'float32'
    """
    from scdrugmap.settings import settings

    name = precision or settings.precision
    if name == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    if name not in PRECISIONS:
        raise InputError("precision", name, "'auto', 'float32', 'bfloat16' or 'float16'", "use precision='auto'.")
    return name


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself; others emulate it, which is slower than float32.

    Examples
    --------
    >>> native_bfloat16() in (True, False)
    True
    """
    return bool(_processor_flags() & {"amx_bf16", "avx512_bf16"})


@cache
def _processor_flags() -> frozenset[str]:
    """What the processor says that it can do, where the system tells (Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


@dataclass(frozen=True)
class Engine:
    """How a run computes: made once by a shell, handed down whole.

    Parameters
    ----------
    device, precision
        As the caller gave them; ``None`` follows ``settings``.
    batch_size
        Most cells in one forward pass; by default a budget of tokens decides.
    progress
        Show progress bars; ``None`` shows them where a terminal or notebook watches.
    store
        Folder of an on-disk embedding that grows block by block.
    seed
        Seed of everything random.
    """

    device: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    progress: bool | None = None
    store: Path | None = field(default=None)
    seed: int = 0

    def __post_init__(self) -> None:
        size = self.batch_size
        if size is not None and (isinstance(size, bool) or not hasattr(size, "__index__") or int(size) < 1):
            raise InputError("batch_size", size, "None or a number of cells of at least 1", "leave it out.")
