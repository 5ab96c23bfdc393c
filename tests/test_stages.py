import threading

import pytest

from vaecli import stages
from vaecli.errors import InterruptedRunError
from vaecli.stages import silent, stoppable, wait_for


def test_what_nothing_can_interrupt_is_left_where_it_is(monkeypatch):
    monkeypatch.setattr(stages, "SECONDS_TO_ANSWER", 0.001)
    ended = threading.Event()
    try:
        with pytest.raises(InterruptedRunError, match="stopped while drawing"):
            wait_for("drawing", lambda: ended.wait(60), stoppable(silent, lambda: True))
    finally:
        ended.set()


def test_the_result_and_the_error_of_work_come_through():
    seen: list[tuple[str, int, int]] = []
    assert wait_for("adding", lambda: 1 + 1, lambda *stage: seen.append(stage)) == 2
    assert (seen[0], seen[-1]) == (("adding", 0, 1), ("adding", 1, 1))
    with pytest.raises(ZeroDivisionError):
        wait_for("dividing", lambda: 1 / 0, silent)


def test_short_work_is_not_worth_the_question():
    asked: list[str] = []
    on_stage = stoppable(silent, lambda: bool(asked.append("stop?")))
    for i in range(5):
        on_stage(f"stage {i}", 0, 1)
        on_stage(f"stage {i}", 1, 1)
    assert asked == []
