"""Which device and arithmetic to use."""

import platform

import torch

from pose.errors import InputError
from pose_models.hardware import cpu_info, has_bfloat16, keep_freed_memory

__all__ = ["cpu_info", "describe", "keep_freed_memory", "pick_device", "pick_precision"]


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
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """The device and arithmetic for people: `cpu (AMD EPYC, 2 threads), bfloat16`."""
    if device.type == "cuda":
        detail = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        detail = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    else:
        detail = platform.processor() or platform.machine()
    return f"{device} ({detail}), {str(dtype).removeprefix('torch.')}"


def _cpu_name() -> str:
    return cpu_info().get("model name") or platform.processor() or platform.machine()
