"""The hardware: which device and arithmetic to use, and how memory is taken from it."""

import ctypes
import platform
from pathlib import Path

import torch

from pose.errors import InputError


def pick_device(device: str) -> torch.device:
    """The device that `device` names; `auto` is CUDA where there is one, then MPS, then CPU.

    Raises:
        InputError: an unknown device, or one that this machine does not have.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        picked = None
    if picked is None or picked.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device must be auto, cpu, cuda, cuda:<n> or mps, got {device!r}")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device must exist on this machine, got {device!r} where torch sees "
            f"{torch.cuda.device_count()} CUDA devices: use auto"
        )
    if picked.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device must exist on this machine, got 'mps' without one: use auto")
    return torch.device("cpu") if picked.type == "cpu" else picked


def pick_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type that autocast computes in; `auto` is bfloat16 where the hardware has it."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        has_bfloat16 = bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"})
    else:
        has_bfloat16 = False
    return torch.bfloat16 if has_bfloat16 else torch.float32


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """The device and arithmetic for people: `cpu (AMD EPYC, 2 threads), bfloat16`."""
    if device.type == "cuda":
        detail = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        detail = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    else:
        detail = platform.processor() or platform.machine()
    return f"{device} ({detail}), {str(dtype).removeprefix('torch.')}"


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of returning it to the system.

    A training step frees and takes back the same large blocks; without this every one of them is
    mapped and zeroed anew, which was a third of the step and more on the CPU (350 instead of 190
    images per second). Does nothing where there is no glibc. Must be called before the first large
    allocation; the process's memory then stays at its peak.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, 2**31 - 1)


def cpu_info() -> dict[str, str]:
    """What Linux says of the (last) core, by its own names; nothing on other systems."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    pairs = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu_flags() -> set[str]:
    return set(cpu_info().get("flags", "").split())


def _cpu_name() -> str:
    return cpu_info().get("model name") or platform.processor() or platform.machine()
