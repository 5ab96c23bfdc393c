"""The results.json of an experiment's page, by which its runs are known where they themselves are not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from vaecli.config.schema import recorded_identity
from vaecli.errors import VaecliError
from vaecli.papers.spec import Split
from vaecli.runs.records import read_object

RESULTS = "results.json"
POINTS = 500
"""Of a curve at most: there may be tens of thousands of epochs."""


class Curve(BaseModel):
    """Hold the metrics of a split, as many as a page shows, at the end of epochs, as many as can be told apart."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    images: list[int]
    """Seen in training."""
    metrics: dict[str, list[float | None]]
    """By name, each as long."""

    @model_validator(mode="after")
    def _are_as_long(self) -> "Curve":
        if any(len(values) != len(self.images) for values in self.metrics.values()):
            raise ValueError("must have as many values as images")
        return self


class RecordedRun(BaseModel):
    """Hold a run as results.json has it: enough to draw the page of an experiment where the run itself is not."""

    model_config = ConfigDict(frozen=True)

    identity: dict[str, Any]
    """Its settings; of an array the checksum stands for its path."""
    settings: dict[str, Any]
    """Those that vary."""
    run: str | None = None
    """The names of its folder and of the run; None where it had not begun."""
    epochs: int
    """That were asked for."""
    finished: bool
    images: int
    evaluations: dict[str, dict[str, Any]]
    curves: dict[Split, Curve]


class Results(BaseModel):
    """Hold what is read of the results.json of an experiment's page."""

    model_config = ConfigDict(frozen=True)

    evaluations: dict[str, dict[str, Any]]
    """How runs were evaluated, by name."""
    runs: list[RecordedRun]


def key_of(identity: Mapping[str, Any]) -> str:
    """Return an identity as text, without the number of epochs where that can be extended."""
    return recorded_identity(json.dumps(identity), extend=True)


def thin(images: Sequence[int]) -> list[int]:
    """Return which points of a curve to keep: so many at most, evenly spaced on a logarithmic axis, first and last."""
    if len(images) <= POINTS:
        return [*range(len(images))]
    rows = np.searchsorted(images, np.geomspace(images[0], images[-1], POINTS)).clip(max=len(images) - 1)
    return [int(i) for i in np.unique(rows)]


def read_results(path: Path) -> tuple[Results, dict[str, RecordedRun]]:
    """Return what a results.json tells, and its runs that have begun by their keys. Raises VaecliError."""
    try:
        if not path.is_file():
            raise VaecliError(f"{path}: no such file")
        results = Results.model_validate(read_object(path))
        return results, {key_of(run.identity): run for run in results.runs if run.images}
    except (KeyError, TypeError, ValueError) as error:
        raise VaecliError(
            f"{path}: is not the results.json of an experiment's page, or of another version; "
            "where its runs are, vae reproduce NAME --report writes it anew"
        ) from error
