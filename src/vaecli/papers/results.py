"""The results.json of an experiment's page, by which its runs are known where they themselves are not."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vaecli.config.identity import recorded_identity
from vaecli.errors import VaecliError
from vaecli.papers.spec import Split
from vaecli.runs.records import read_object

RESULTS = "results.json"


class Point(BaseModel):
    """Hold the metrics of one epoch, of a split, that a page shows."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    split: Split
    images: int
    elbo: float | None = None
    log_likelihood: float | None = None
    kl: float | None = None
    active_units: float | None = None


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
    curves: list[Point]

    @property
    def key(self) -> str:
        """Return the identity as text, without the number of epochs where that can be extended."""
        return recorded_identity(json.dumps(self.identity), extend=True)


class Results(BaseModel):
    """Hold what is read of the results.json of an experiment's page."""

    model_config = ConfigDict(frozen=True)

    evaluations: dict[str, dict[str, Any]]
    """How runs were evaluated, by name."""
    runs: list[RecordedRun]


def read_results(path: Path) -> tuple[Results, dict[str, RecordedRun]]:
    """Return what a results.json tells, and its runs that have begun by their keys. Raises VaecliError."""
    try:
        if not path.is_file():
            raise VaecliError(f"{path}: no such file")
        results = Results.model_validate(read_object(path))
        return results, {run.key: run for run in results.runs if run.images}
    except (KeyError, TypeError, ValueError) as error:
        raise VaecliError(
            f"{path}: is not the results.json of an experiment's page, or of another version; "
            "where its runs are, vae reproduce NAME --report writes it anew"
        ) from error
