"""Long work before the first step: it says what it does and how far it is, and it can be stopped at once."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from vaecli.errors import InterruptedRunError

StageCallback = Callable[[str, int, int], None]
"""Is called with the stage of the work, how much of it is done, and of how much; what it raises ends the work."""

SECONDS_TO_ANSWER = 0.1
"""So often at least, work that lasts asks whether to stop; shorter work is not worth the question."""


def silent(stage: str, done: int, total: int) -> None:
    """Show nothing."""


def stoppable(on_stage: StageCallback, stop: Callable[[], bool]) -> StageCallback:
    """Return a callback that passes on all but what is done at once, and ends the work once `stop` asks for it.

    Raises:
        InterruptedRunError: From the callback.
    """
    current, asked_at = "", 0.0

    def move(stage: str, done: int, total: int) -> None:
        nonlocal current, asked_at
        now = time.monotonic()
        if stage != current:
            if done >= total:
                return
            current, asked_at = stage, now
        on_stage(stage, done, total)
        if done >= total:
            current = ""
        elif now - asked_at > SECONDS_TO_ANSWER:
            asked_at = now
            if stop():
                raise InterruptedRunError(f"stopped while {stage}")

    return move


T = TypeVar("T")


def wait_for(stage: str, work: Callable[[], T], on_stage: StageCallback) -> T:
    """Do in a thread what nothing can interrupt, so that it can be left where it is.

    Args:
        stage: What it is, for `on_stage`.
        work: Has no effect but its result, since it may go on after it was left.
        on_stage: Is called again and again.

    Raises:
        InterruptedRunError: `on_stage` asks to stop; or whatever the work raises.
    """
    found: list[T] = []
    raised: list[BaseException] = []

    def do() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 (it is raised again below)
            raised.append(error)

    thread = threading.Thread(target=do, daemon=True)
    on_stage(stage, 0, 1)
    thread.start()
    while thread.is_alive():
        thread.join(SECONDS_TO_ANSWER)
        on_stage(stage, 0, 1)
    on_stage(stage, 1, 1)
    if raised:
        raise raised[0]
    return found[0]
