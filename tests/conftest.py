"""What the tests share: small images made on the spot, and small configs on them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vaecli.config import Config
from vaecli.configfile import parse_config

torch.set_num_threads(1)  # the tensors here are too small to share out


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
            "training": {"epochs": 3, "batch_size": 10},
            "device": "cpu",
        }
        for key, value in sections.items():
            values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
        return parse_config(values)

    return build
