"""How long work is asked to stop: a question put to whoever started it."""

from collections.abc import Callable

Stop = Callable[[], bool]
"""Says whether to stop: after this step, with a checkpoint."""


def never() -> bool:
    """Do not stop."""
    return False
