"""Evaluations made up for tests of what is done with them."""

from dataclasses import fields
from typing import Any

from vaecli.evaluation.result import Evaluation

WORDS = {"run", "checkpoint", "split", "decoder", "support", "observed", "proposal"}


def metrics(**given: Any) -> Evaluation:
    """Return an evaluation with these metrics; the others are zero, or None where they may be."""
    values: dict[str, Any] = {}
    for field in fields(Evaluation):
        values[field.name] = None if "None" in str(field.type) else 0 if field.type is int else 0.0
    values |= dict.fromkeys(WORDS, "x")
    values |= {"is_likelihood": True, "log_evidence_by_k": {}}
    return Evaluation(**(values | given))
