"""Sixteen seeds of one config on a CPU: one after another, as one batched program, and in a process for each core.

Bare matrix products, a Bernoulli on grey pixels and Adam; printed are milliseconds of a step of one replicate.
"""

import multiprocessing
import os
import statistics
import time
from typing import Any

import torch

REPLICATES, M, H, Z, D = 16, 100, 500, 20, 784
STEPS, ROUNDS = 15, 7


def main() -> None:
    """Measure in turn, and print medians and ranges."""
    cores = os.cpu_count() or 1
    found: dict[str, list[float]] = {"one after another": [], "batched": [], f"{cores} processes": []}
    for _ in range(ROUNDS):
        one, batched, processes = found.values()
        one.append(_run(cores, together=False))
        batched.append(_run(cores, together=True))
        with multiprocessing.get_context("spawn").Pool(cores) as pool:
            processes.append(statistics.mean(pool.starmap(_run, [(1, False)] * cores)) / cores)
    for name, times in found.items():
        ratio = [time / other for time, other in zip(times, processes, strict=True)]
        print(
            f"{name}: {statistics.median(times):.2f} ms ({min(times):.2f}-{max(times):.2f}), of processes' "
            f"{statistics.median(ratio):.2f} ({min(ratio):.2f}-{max(ratio):.2f})"
        )


def _run(threads: int, together: bool) -> float:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    models = [_model(REPLICATES)] if together else [_model() for _ in range(REPLICATES)]
    shape = (REPLICATES, M) if together else (M,)
    x, epsilon = (torch.rand(*shape, D) > 0.5).float(), torch.randn(*shape, Z)
    for model in models:
        _step(*model, x, epsilon)
    began = time.perf_counter()
    for model in models:
        for _ in range(STEPS):
            _step(*model, x, epsilon)
    return (time.perf_counter() - began) / STEPS / REPLICATES * 1e3


def _model(*stack: int) -> tuple[list[Any], torch.optim.Adam]:
    weights = [(torch.randn(*stack, *shape) * 0.05).requires_grad_() for shape in ((D, H), (H, 2 * Z), (Z, H), (H, D))]
    return weights, torch.optim.Adam(weights, fused=True)


def _step(weights: list[Any], adam: torch.optim.Adam, x: torch.Tensor, epsilon: torch.Tensor) -> None:
    mean, log_sigma = (torch.relu(x @ weights[0]) @ weights[1]).split(Z, -1)
    logits = torch.relu((mean + log_sigma.exp() * epsilon) @ weights[2]) @ weights[3]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    kl = 0.5 * (mean.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(-1)
    adam.zero_grad()
    (loss + kl).mean(-1).sum().backward()
    adam.step()


if __name__ == "__main__":
    main()
