import pytest
import torch

from vaecli.config.likelihoods import Support
from vaecli.config.sections import DataConfig
from vaecli.data.preprocess import build_preprocess
from vaecli.randomness import generator

LEVELS = torch.tensor([[0, 1, 100, 127, 128, 254, 255]], dtype=torch.uint8)


def preprocess(support: Support, pixels: torch.Tensor = LEVELS, **settings: object):
    return build_preprocess(support, DataConfig(**settings))(pixels, generator(0, "pixels"))


def test_dynamic_binarisation_draws_each_pixel_with_its_grey_level():
    n = 200_000
    batch = preprocess(Support.BINARY, LEVELS.expand(n, -1))
    p = LEVELS[0] / 255
    assert set(batch.target.unique().tolist()) == {0.0, 1.0}
    assert ((batch.target.mean(0) - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()  # 0 and 255 exactly
    assert batch.input is batch.target


def test_dynamic_binarisation_is_drawn_anew_each_time():
    preprocess_dynamically, stream = build_preprocess(Support.BINARY, DataConfig()), generator(0, "pixels")
    grey = torch.full((1, 1000), 128, dtype=torch.uint8)
    assert not torch.equal(preprocess_dynamically(grey, stream).target, preprocess_dynamically(grey, stream).target)


@pytest.mark.parametrize("binarize", ["threshold", "static"])
def test_threshold(binarize):
    assert preprocess(Support.BINARY, binarize=binarize).target.tolist() == [[0, 0, 0, 0, 1, 1, 1]]


def test_no_binarisation_gives_grey_levels():
    assert torch.equal(preprocess(Support.BINARY, binarize="none").target, LEVELS / 255)


def test_dequantisation_fills_each_level_of_width_1_256():
    y = preprocess(Support.UNIT_INTERVAL, LEVELS.expand(20_000, -1)).target * 256
    assert torch.equal(y.floor().to(torch.uint8), LEVELS.expand(20_000, -1))
    fraction = y - y.floor()
    assert (fraction.mean(0) - 0.5).abs().max() < 5 * (1 / 12 / 20_000) ** 0.5
    assert (preprocess(Support.UNIT_INTERVAL).target < 1).all()


def test_without_dequantisation_a_density_meets_grey_levels():
    assert torch.equal(preprocess(Support.UNIT_INTERVAL, dequantize=False).target, LEVELS / 255)
