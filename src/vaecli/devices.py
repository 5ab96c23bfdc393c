"""The device a config names, and how the processor is set up for training."""

import platform
import re
from pathlib import Path

import torch

from vaecli.config.schema import DEVICE
from vaecli.errors import UsageError
from vaecli.memory import process_memory

REPLICATES, STEPS = "replicates", "steps"
DEFAULTS = {REPLICATES: "1", STEPS: "eager"}
"""Conditions of checkpoints that do not name them."""


def resolve_device(name: str) -> torch.device:
    """Return the device of a config's `device`; auto is CUDA where there is one, else the CPU. Raises UsageError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(DEVICE, name):
        raise UsageError(f"device: {name!r} is not a device; write auto, cpu, cuda, cuda:1 or mps")
    device = torch.device(name)
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }[device.type]
    if not there:
        raise UsageError(f"device: {name} is not there; this machine has {', '.join(available_devices())}")
    return device


def available_devices() -> list[str]:
    """Return the devices that torch finds here."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def prefer_gpu(number: int) -> None:
    """Let `cuda` mean another GPU in each of several processes: the process's number modulo how many GPUs there are."""
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(number % torch.cuda.device_count())


def flush_subnormals() -> None:
    """Treat subnormal floats as zero on the CPU.

    The moments that Adam keeps of a dead weight decay into subnormals, which are slow to compute with. Threads inherit
    the setting when they start, so it must come before the first parallel operation of the process.
    """
    torch.set_flush_denormal(True)


def allow_tf32(device: torch.device, allowed: bool) -> None:
    """Let matrix products on CUDA round their factors to TF32's 10 bits of mantissa, or have them in full float32."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"


def conditions(device: torch.device, replicates: int = 1, *, compiled: bool = False) -> dict[str, str]:
    """Return what, besides the config and the number of threads, decides the bits of training.

    Args:
        device: Where the parameters are.
        replicates: How many runs are trained as one batched program.
        compiled: Whether the gradient is compiled.
    """
    return {
        "torch": str(torch.__version__),
        "device": describe(device),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        REPLICATES: str(replicates),
        STEPS: "compiled" if compiled else "eager",
    }


def memory(device: torch.device) -> int | None:
    """Return the bytes of a device's memory that may be used in all; None where they are not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return process_memory()


def describe(device: torch.device) -> str:
    """Return the name of the device's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
