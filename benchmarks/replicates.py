"""Sixteen seeds of one config: one after another, as one batched program, and on a CPU in a process for each core.

The steps are those of training (H = 500, Z = 20, M = 100, L = 1, Bernoulli); on CUDA they are replayed from graphs.
"""

import multiprocessing
import os
import statistics
import time
from itertools import islice

import torch

from vaecli.config.loading import load_config
from vaecli.config.schema import Config
from vaecli.data.dataset import Dataset
from vaecli.devices import flush_subnormals
from vaecli.training.accelerate import choose_step
from vaecli.training.opening import new_state
from vaecli.training.state import Minibatch, TrainingState

REPLICATES, STEPS = 16, 50


def replicates(device: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a step of one replicate, of each way in turn."""
    cores, on_cpu = os.cpu_count() or 1, device == "cpu"
    found: dict[str, list[float]] = {"one after another": [], "vmapped": []}
    if on_cpu:
        found["a process for each core"] = []
    for _ in range(rounds):
        found["one after another"].append(measure(device, cores, 1))
        found["vmapped"].append(measure(device, cores, REPLICATES))
        if on_cpu:
            with multiprocessing.get_context("spawn").Pool(cores) as pool:
                each = pool.starmap(measure, [(device, 1, 1)] * cores)
            found["a process for each core"].append(statistics.mean(each) / cores)
    print(f"\n| {REPLICATES} seeds | ms a step of one | / one after another | range |\n|---|---|---|---|")
    for name, times in found.items():
        ratios = [time / other for time, other in zip(times, found["one after another"], strict=True)]
        middle = f"{statistics.median(times):.3f} | {statistics.median(ratios):.2f}"
        print(f"| {name} | {middle} | {min(ratios):.2f}–{max(ratios):.2f} |")
    return found


def measure(device: str, threads: int, n_states: int) -> float:
    """Milliseconds of a step of one replicate."""
    torch.set_num_threads(threads)
    flush_subnormals()
    graph = str(device.startswith("cuda")).lower()
    config = load_config("bernoulli.yaml", [f"device={device}", f"training.cuda_graph={graph}"])
    states = _states(config, n_states)
    step, n = choose_step(states), states[0].chunk_size

    def go(n_steps: int) -> None:
        minibatches = [state.minibatches() for state in states]
        for _ in range(n_steps // n):
            step(*([Minibatch(pixels, 1.0, 1e-3) for pixels in islice(each, n)] for each in minibatches))
        if device != "cpu":
            torch.cuda.synchronize()

    go(n)
    began = time.perf_counter()
    go(STEPS)
    return (time.perf_counter() - began) / STEPS / n_states * 1e3


def _states(config: Config, n: int) -> list[TrainingState]:
    images = Dataset(config.data, config.model.likelihood.support).train
    seeds = [config.model_copy(update={"seed": seed}) for seed in range(n)]
    return [new_state(each, images, torch.device(config.device)) for each in seeds]
