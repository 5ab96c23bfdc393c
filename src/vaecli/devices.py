"""The device a config names, and how the processor is set up for training."""

import platform
import re
from pathlib import Path
from typing import Literal

import torch

from vaecli.config.schema import DEVICE
from vaecli.errors import UsageError
from vaecli.memory import process_memory
from vaecli.products import Library, has_onednn

REPLICATES, STEPS, PRODUCTS, DRAWS = "replicates", "steps", "matrix products", "random numbers"
DEFAULTS = {REPLICATES: "1", STEPS: "eager", PRODUCTS: "torch", DRAWS: "32 bits each"}
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
    """Let matrix products and convolutions on CUDA round factors to the 10 bits of mantissa of TF32, or not."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"
        torch.backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"  # type: ignore[attr-defined]


def repeat_sums() -> None:
    """Let convolutions on CUDA use only algorithms that take their sums in the same order each time."""
    torch.backends.cudnn.deterministic = True


def choose_library(setting: Literal["auto", "torch", "onednn"], device: torch.device) -> Library:
    """Return the library that a config's `training.products` asks for.

    `auto` goes by the processor and not by a measurement, since the library decides the bits: oneDNN on processors by
    AMD with AVX-512, where it was measured to be the faster one, and torch's everywhere else.

    Raises:
        UsageError: oneDNN is asked for where it is not to be had.
    """
    if setting == "onednn" and device.type == "cpu" and not has_onednn(device):
        raise UsageError("training.products: onednn is not to be had from this torch; write auto")
    is_faster = _vendor() == "AuthenticAMD" and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    wanted = setting == "onednn" or (setting == "auto" and is_faster)
    return "onednn" if wanted and has_onednn(device) else "torch"


def conditions(
    device: torch.device, replicates: int = 1, *, compiled: bool = False, library: str = "torch"
) -> dict[str, str]:
    """Return what, besides the config and the number of threads, decides the bits of training.

    Args:
        device: Where the parameters are.
        replicates: How many runs are trained as one batched program.
        compiled: Whether the gradient is compiled.
        library: What makes the matrix products.
    """
    return {
        "torch": str(torch.__version__),
        "device": describe(device),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        REPLICATES: str(replicates),
        STEPS: "compiled" if compiled else "eager",
        PRODUCTS: library,
        DRAWS: "16 bits each",
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


def _vendor() -> str | None:
    """Return the maker of the processor, as `AuthenticAMD` or `GenuineIntel`; None where it is not known."""
    return _of_processor("vendor_id")


def _processor() -> str:
    return _of_processor("model name") or platform.processor() or platform.machine()


def _of_processor(fact: str) -> str | None:
    """Return what Linux says of the first processor; None on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(fact)), None)
