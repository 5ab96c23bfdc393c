"""vaecli: the experiment runner for Variational Auto-Encoders.

Everything that a command does is one call here::

    import vaecli

    config = vaecli.load_config("bernoulli.yaml", ["training.epochs=5"])
    run = vaecli.train(config)
    run.metrics[-1]["elbo"]
    vaecli.sample(run, 16)

Importing the package costs nothing; torch is imported with the first name that needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaecli.comparison import compare
    from vaecli.config import Config
    from vaecli.configfile import load_config
    from vaecli.errors import VaecliError
    from vaecli.evaluation import evaluate
    from vaecli.generation import encode, interpolate, manifold, reconstruct, sample
    from vaecli.report import write_report
    from vaecli.runs import Run, load_run
    from vaecli.sweep import load_sweep, run_sweep
    from vaecli.training import resume, train

_HOMES = {
    "Config": "config",
    "Run": "runs",
    "VaecliError": "errors",
    "compare": "comparison",
    "encode": "generation",
    "evaluate": "evaluation",
    "interpolate": "generation",
    "load_config": "configfile",
    "load_run": "runs",
    "load_sweep": "sweep",
    "manifold": "generation",
    "reconstruct": "generation",
    "resume": "training",
    "run_sweep": "sweep",
    "sample": "generation",
    "train": "training",
    "write_report": "report",
}
__all__ = [
    "Config", "Run", "VaecliError", "compare", "encode", "evaluate", "interpolate", "load_config", "load_run",
    "load_sweep", "manifold", "reconstruct", "resume", "run_sweep", "sample", "train", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"vaecli.{_HOMES[name]}"), name)
