"""Checkpoints: plain dictionaries of tensors, numbers and strings, enough to sample from or to go on from."""

import io
import math
import pickle
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaecli.config import Config
from vaecli.configfile import parse_config
from vaecli.errors import ConfigError, VaecliError
from vaecli.files import write_atomically
from vaecli.randomness import generator
from vaecli.vae import VAE, build_vae

FORMAT = "vaecli checkpoint"
VERSION = 1


@dataclass
class Progress:
    """How far training has come."""

    epoch: int = 0
    """Epochs completed."""
    position: int = 0
    """Steps completed of the current epoch."""
    step: int = 0
    """Steps completed in all."""
    images: int = 0
    """Images seen in all."""
    seconds: float = 0.0
    """Time spent on training steps."""
    best_elbo: float = -math.inf
    """The best validation ELBO so far, in nats."""
    best_epoch: int = 0


@dataclass
class Checkpoint:
    """The whole state of a run at one instant."""

    config: Config
    image_shape: tuple[int, int]
    """Height and width."""
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    progress: Progress
    generators: dict[str, Tensor]
    """The state of each random-number stream of training."""
    permutation: Tensor | None
    """The order of the images in the current epoch; None between epochs."""
    trace: Tensor
    """Loss, log-likelihood and KL of each step of the current epoch (steps, 3)."""
    threads: int
    """Threads on the CPU, which fix the order of float32 sums."""
    data_sha256: str
    """Of the training pixels."""
    logs: dict[str, int]
    """Bytes of each append-only log."""

    def build_vae(self) -> VAE:
        """The model with these weights, on the CPU. Raises VaecliError where they do not fit the config."""
        height, width = self.image_shape
        vae = build_vae(self.config.model, height * width, generator(self.config.seed, "init"))
        try:
            vae.load_state_dict(self.model)
        except (RuntimeError, TypeError) as error:
            raise VaecliError(f"the checkpoint's weights do not fit its config: {_brief(error)}") from error
        return vae.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        **vars(checkpoint),
        "config": checkpoint.config.model_dump(mode="json"),
        "progress": asdict(checkpoint.progress),
    }
    buffer = io.BytesIO()  # torch.save turns the errors of a full disk into its own
    torch.save(content, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint; nothing in it is executed. Raises VaecliError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at what a damaged file may be
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise VaecliError(f"{path}: holds more than tensors, numbers and strings, or is damaged; not loaded") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise VaecliError(f"{path}: not a checkpoint, or cut short ({_brief(error)})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise VaecliError(f"{path}: not a checkpoint of vaecli")
    if content.get("version") != VERSION:
        raise VaecliError(f"{path}: has format version {content.get('version')!r}; this vaecli reads version {VERSION}")
    try:
        return _parse(content)
    except ConfigError as error:
        raise VaecliError(f"{path}: its config is not valid: {'; '.join(error.problems)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise VaecliError(f"{path}: a part is missing or malformed: {_brief(error)}") from error


def _parse(content: dict[str, Any]) -> Checkpoint:
    values = {key: value for key, value in content.items() if key not in {"format", "version"}}
    values["config"] = parse_config(values["config"])
    values["progress"] = Progress(**values["progress"])
    height, width = values["image_shape"]
    if not all(isinstance(side, int) and 0 < side <= 65536 for side in (height, width)):
        raise ValueError(f"image_shape is {height!r} x {width!r}")
    values["image_shape"] = (height, width)
    checkpoint = Checkpoint(**values)
    for name, kind in (
        ("model", dict),
        ("optimizer", dict),
        ("generators", dict),
        ("trace", Tensor),
        ("threads", int),
    ):
        if not isinstance(values[name], kind):
            raise TypeError(f"{name} is {type(values[name]).__name__}, not {kind.__name__}")
    if not all(isinstance(value, Tensor) for value in (*checkpoint.model.values(), *checkpoint.generators.values())):
        raise TypeError("model and generators hold more than tensors")
    if not 0 < checkpoint.threads <= 1024:
        raise ValueError(f"threads is {checkpoint.threads}")
    return checkpoint


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:200] or type(error).__name__
