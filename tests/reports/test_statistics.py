import numpy as np
import pytest

from vaecli.reports.statistics import holm, interval, paired, welch


def test_the_interval_is_students():
    # mean 2, s = 1, n = 3: t(0.975, 2) = 4.302653, half-width 4.302653/√3 = 2.484138
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.484138), abs=1e-6)
    assert interval([5.0]) == (5.0, None)


def test_welch_on_a_worked_example():
    # a: mean 2, var 1; b: mean 6, var 4, n = 3 each: t = -4/√(5/3) = -3.098387, df = (5/3)²/((1/9 + 16/9)/2) = 2.941176
    a, b = [1.0, 2.0, 3.0], [4.0, 6.0, 8.0]
    assert welch(a, b) == pytest.approx(0.0549, abs=5e-4)
    assert welch([1.0], b) is None


def test_pairing_finds_what_the_spread_over_images_hides():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, 1000)
    assert paired(hard, hard + 0.1 + rng.normal(0, 0.1, 1000)) < 1e-10
    assert paired(hard, hard) == 1
    assert paired(hard, hard + 1) < 1e-10


def test_holm():
    # 0.01·4, then 0.02·3, then 0.03·2 raised to 0.06, then 0.5
    assert holm([0.03, 0.01, None, 0.5, 0.02]) == pytest.approx([0.06, 0.04, None, 0.5, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
