"""What it would take to train one run in two processes: each step's gradient averaged between them, with gloo.

Run as `torchrun --nproc-per-node 2 benchmarks/two_processes.py [M]`, and alone, as `python benchmarks/two_processes.py
[M]`, for the same minibatch in one process on both cores. Printed are milliseconds of a step.
"""

import os
import sys
import time

import torch
from torch import distributed

from vaecli.config.loading import parse_config
from vaecli.data.dataset import Dataset
from vaecli.devices import flush_subnormals
from vaecli.model.objectives import build_objective, loss
from vaecli.training.opening import new_state
from vaecli.training.state import TrainingState

STEPS, ROUNDS = 40, 5


def main() -> None:
    """Measure, and print."""
    batch_size = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo")
    flush_subnormals()
    config = parse_config({"training": {"batch_size": batch_size // processes, "epochs": 1}, "device": "cpu"})
    support = config.model.likelihood.support
    state = new_state(config, Dataset(config.data, support).train, torch.device("cpu"))
    _steps(state, processes)
    for _ in range(ROUNDS):
        step, sharing = _steps(state, processes)
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"M = {batch_size}, {processes} processes: {step:.2f} ms a step, {sharing:.2f} of them averaging")


def _steps(state: TrainingState, processes: int) -> tuple[float, float]:
    config, objective = state.config, build_objective(state.config.objective)
    gradient = torch.zeros(sum(parameter.numel() for parameter in state.vae.parameters()))
    minibatches = state.minibatches()
    began, sharing = time.perf_counter(), 0.0
    for _ in range(STEPS):
        batch, epsilon = state.draw(next(minibatches))
        value, _ = loss(objective, state.vae, batch, epsilon)
        state.optimizer.zero_grad()
        value.backward()
        if processes > 1:
            before = time.perf_counter()
            distributed.all_reduce(gradient)
            sharing += time.perf_counter() - before
        state.optimizer.step(config.optimizer.learning_rate)
    return (time.perf_counter() - began) / STEPS * 1e3, sharing / STEPS * 1e3


if __name__ == "__main__":
    main()
