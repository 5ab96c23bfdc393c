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
    from vaecli.config.loading import load_config
    from vaecli.config.schema import Config
    from vaecli.errors import VaecliError
    from vaecli.evaluation.annealed import evaluate_annealed
    from vaecli.evaluation.calibration import evaluate_calibration
    from vaecli.evaluation.evaluate import evaluate
    from vaecli.evaluation.gaps import evaluate_gaps
    from vaecli.evaluation.generation import encode, interpolate, manifold, reconstruct, sample
    from vaecli.papers.comparison import gather_outcomes
    from vaecli.papers.experiment import load_experiment
    from vaecli.papers.page import write_page
    from vaecli.reports.explorer import explore
    from vaecli.reports.report import write_report
    from vaecli.runs.run import Run, load_run
    from vaecli.sweeps.execution import compare, run_sweep
    from vaecli.sweeps.sweep import load_sweep
    from vaecli.training.loop import resume, train

_HOMES = {
    "Config": "config.schema",
    "Run": "runs.run",
    "VaecliError": "errors",
    "compare": "sweeps.execution",
    "encode": "evaluation.generation",
    "evaluate": "evaluation.evaluate",
    "evaluate_annealed": "evaluation.annealed",
    "evaluate_calibration": "evaluation.calibration",
    "evaluate_gaps": "evaluation.gaps",
    "explore": "reports.explorer",
    "gather_outcomes": "papers.comparison",
    "interpolate": "evaluation.generation",
    "load_config": "config.loading",
    "load_experiment": "papers.experiment",
    "load_run": "runs.run",
    "load_sweep": "sweeps.sweep",
    "manifold": "evaluation.generation",
    "reconstruct": "evaluation.generation",
    "resume": "training.loop",
    "run_sweep": "sweeps.execution",
    "sample": "evaluation.generation",
    "train": "training.loop",
    "write_page": "papers.page",
    "write_report": "reports.report",
}
__all__ = [
    "Config", "Run", "VaecliError", "compare", "encode", "evaluate", "evaluate_annealed", "evaluate_calibration",
    "evaluate_gaps", "explore", "gather_outcomes", "interpolate", "load_config", "load_experiment", "load_run",
    "load_sweep", "manifold", "reconstruct", "resume", "run_sweep", "sample", "train", "write_page", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"vaecli.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names and no others: submodules and typing names are not for completion."""
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
