"""What the tests share: small images made on the spot, and small configs on them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn
from torch.distributions import MultivariateNormal

from vaecli.config.loading import parse_config
from vaecli.config.schema import Config
from vaecli.data.preprocess import Batch
from vaecli.model.conditionals import Conditional
from vaecli.model.distributions import DiagonalNormal
from vaecli.model.priors import StandardNormal
from vaecli.model.vae import VAE

settings.register_profile("test", max_examples=100, derandomize=True, deadline=None)
settings.register_profile("fuzz", max_examples=10_000, deadline=None)
settings.load_profile("test")
torch.set_num_threads(1)  # the tensors here are too small to share out


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make stress` does what takes long, and fails at every point; `make test` does the rest, and fails at some."""
    parser.addoption("--stress", action="store_true", help="do what takes long only, and fail at every operation")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what takes long to `make stress`."""
    if config.getoption("--stress"):
        items[:] = [item for item in items if "slow" in item.keywords or "stress" in getattr(item, "fixturenames", ())]
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes long; make stress"))


@pytest.fixture
def stress(request: pytest.FixtureRequest) -> bool:
    """Return whether to try every point at which something can fail."""
    return bool(request.config.getoption("--stress"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test itself draws from torch is the same every time."""
    torch.manual_seed(0)


@pytest.fixture
def images() -> np.ndarray:
    """60 images of 6x5 pixels: a bright bar at one of five places, with some noise of its own."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (60, 6, 5), dtype=np.uint8)
    for i, image in enumerate(pixels):
        image[:, i % 5] = 255 - image[:, i % 5]
    return pixels


@pytest.fixture
def faces(tmp_path: Path, images: np.ndarray) -> Path:
    """The images as an array file: 54 for training, of which 9 for validation, and 6 for testing."""
    path = tmp_path / "faces.npz"
    np.savez(path, images=images, labels=np.arange(60) % 5)
    return path


@pytest.fixture
def small(faces: Path):
    """A config of a few milliseconds per epoch; sections are merged over it."""

    def build(**sections: object) -> Config:
        values: dict = {
            "name": "small",
            "data": {"name": str(faces)},
            "model": {"latent_dim": 3, "hidden_dim": 8},
            "training": {"epochs": 3, "batch_size": 10, "compile": "off"},
            "device": "cpu",
        }
        for key, value in sections.items():
            values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
        return parse_config(values)

    return build


D, Z, B = 6, 3, 4
SIGMA = 0.7


class Affine(Conditional):
    """N(y; A c + b, diag exp(2 log_sigma)), with everything given."""

    n_params = 1

    def __init__(self, matrix, bias, log_sigma):
        super().__init__(nn.Identity())
        self.matrix, self.bias, self.log_sigma = nn.Parameter(matrix), bias, log_sigma

    def output(self, c):
        return c @ self.matrix.T + self.bias

    def distribution(self, output):
        return DiagonalNormal(output, self.log_sigma.expand_as(output))


@pytest.fixture
def oracle():
    """p(x|z) = N(Wz + b, σ²I), W with orthogonal columns; the exact posterior; and log N(x; b, WWᵀ + σ²I)."""
    rng = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(D, Z, generator=rng, dtype=torch.float64))
    w = basis * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    b = torch.randn(D, generator=rng, dtype=torch.float64)
    variance = SIGMA**2 / (w.square().sum(0) + SIGMA**2)  # of the posterior: (I + WᵀW/σ²)⁻¹, diagonal
    posterior = variance[:, None] * w.T / SIGMA**2
    vae = VAE(
        Affine(posterior, -posterior @ b, 0.5 * variance.log()),
        Affine(w, b, torch.tensor(math.log(SIGMA), dtype=torch.float64)),
        StandardNormal(Z),
    )
    x = torch.randn(B, D, generator=rng, dtype=torch.float64)
    evidence = MultivariateNormal(b, w @ w.T + SIGMA**2 * torch.eye(D, dtype=torch.float64)).log_prob(x)
    return vae, Batch(x, x), evidence


@pytest.fixture
def loose(oracle):
    """The same model with an encoder that is off: a bound with a gap."""
    vae, batch, evidence = oracle
    vae.encoder.bias = vae.encoder.bias + 0.5
    vae.encoder.log_sigma = vae.encoder.log_sigma + 0.3
    return vae, batch, evidence
