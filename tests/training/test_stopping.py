import pytest

from vaecli.errors import UsageError
from vaecli.training.stopping import Limit, duration

DURATIONS = {"90": 90, "90s": 90, "45m": 2700, "2h": 7200, "1.5h": 5400, "1h30m": 5400, "2d": 172_800}


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "0", "-5s", "2 hours", "1h 30m", "nan", "1e3", "9999999d"])
def test_what_is_no_duration(text):
    with pytest.raises(UsageError, match="is not a duration; write 90s, 45m, 2h, 1h30m or 2d"):
        duration(text)


def test_limits():
    assert Limit().reached(10**12) is None
    assert Limit(images=60).reached(59) is None
    assert Limit(images=60).reached(60) == "60 images"
    assert Limit(seconds=1e-9).reached(0) == "1e-09 s"
    assert Limit(seconds=1e9).reached(0) is None
