"""Checkpoints: plain dictionaries of tensors, numbers and strings, enough to sample from or to resume from."""

import hashlib
import io
import math
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaecli.config.loading import parse_config
from vaecli.config.schema import Config
from vaecli.data.image_grid import ImageShape
from vaecli.devices import DEFAULTS
from vaecli.errors import ConfigError, VaecliError, is_out_of_memory
from vaecli.files import write_atomically
from vaecli.model.vae import VAE, build_meta_vae, build_vae
from vaecli.randomness import generator
from vaecli.runs.archive import unpack

FORMAT = "vaecli checkpoint"
VERSION = 5
READABLE = (2, 3, 4, 5)
"""Versions that can be read: 4 has nothing of an algorithm; 3 does not say, besides, whose it is; 2 has, besides, an
image shape without channels, and other words for its conditions."""
_CONDITIONS_OF_VERSION_2 = {"runs trained together": "replicates", "plain": "eager"}


@dataclass
class Progress:
    """Count how far training has come."""

    epoch: int = 0
    """Epochs completed."""
    position: int = 0
    """Steps completed of the current epoch."""
    step: int = 0
    """Steps completed in all."""
    images: int = 0
    """Images seen in all."""
    learning_rate: float = 0.0
    """The step size of the last step."""
    seconds: float = 0.0
    """Time spent on training steps."""
    best_elbo: float = -math.inf
    """The best validation ELBO so far, in nats."""
    best_epoch: int = 0


@dataclass
class Checkpoint:
    """Hold the whole state of a run at one instant."""

    config: Config
    image_shape: ImageShape
    model: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    """The optimiser's moments of each parameter, by its number; its settings are the config's."""
    progress: Progress
    generators: dict[str, Tensor]
    """The state of each random-number stream of training."""
    permutation: Tensor | None
    """The order of the images in the current epoch; None between epochs."""
    trace: Tensor
    """Loss, log-likelihood and KL of each step of the current epoch (steps, 3)."""
    algorithm: dict[str, Tensor]
    """What the learning algorithm keeps from step to step beside the parameters."""
    threads: int
    """Threads on the CPU, which fix the order of float32 sums."""
    conditions: dict[str, str]
    """What else decides the bits: the device and torch's version."""
    data_sha256: str
    """Of the training pixels."""
    logs: dict[str, int]
    """Bytes of each append-only log."""
    run_id: str | None = None
    """The `Run.id` of the run that wrote it; None where that was not recorded."""
    digest: str | None = field(default=None, repr=False, compare=False)
    """The SHA-256 of the file that it was read from; None for one that was captured. It is not in the file."""

    def changed_conditions(self, now: Mapping[str, str]) -> list[str]:
        """Say which conditions have changed: other hardware and other versions take sums in another order."""
        before, cores = DEFAULTS | self.conditions, os.cpu_count() or 1
        changes = [
            f"{name} {before.get(name, 'unknown')} before, {value} now"
            for name, value in now.items()
            if before.get(name) != value
        ]
        return changes + [f"{self.threads} threads, on {cores} cores now"] * (self.threads > cores)

    def build_vae(self) -> VAE:
        """Build the model with these weights, on the CPU."""
        vae = build_vae(
            self.config.model,
            self.image_shape,
            generator(self.config.seed, "init"),
            of_vectors=self.config.data.kind == "vectors",
        )
        vae.load_state_dict(self.model)
        return vae.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        **vars(checkpoint),
        "config": checkpoint.config.model_dump(mode="json"),
        "image_shape": tuple(checkpoint.image_shape),
        "progress": asdict(checkpoint.progress),
    }
    del content["digest"]
    buffer = io.BytesIO()  # torch.save turns the errors of a full disk into its own
    torch.save(content, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint; nothing in it is executed, and no more memory taken than some times its length.

    The file is read once, so that what is checked, what is used, and the digest are of the same bytes, whatever is
    written meanwhile.

    Raises:
        VaecliError: The file is not a checkpoint, is damaged, or holds anything that no run would have written.
    """
    try:
        packed = path.read_bytes()
        content = unpack(packed)
    except FileNotFoundError as error:
        raise VaecliError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise VaecliError(f"{path}: holds more than tensors, numbers and strings, or is damaged; not loaded") from error
    except Exception as error:  # zipfile, pickle and torch share no error for a damaged file
        if is_out_of_memory(error):
            raise VaecliError(f"{path}: takes more memory than this process may use, or is damaged") from error
        raise VaecliError(f"{path}: not a checkpoint, or damaged or cut short ({_brief(error)})") from error
    name, version = (content.get(key) if isinstance(content, dict) else None for key in ("format", "version"))
    if not isinstance(name, str) or name != FORMAT:
        raise VaecliError(f"{path}: not a checkpoint of vaecli")
    if not isinstance(version, int) or version not in READABLE:
        readable = f"{', '.join(map(str, READABLE[:-1]))} and {READABLE[-1]}"
        raise VaecliError(f"{path}: has format version {str(version)[:20]}; this vaecli reads versions {readable}")
    try:
        checkpoint = _parse(_upgrade(content) if version < VERSION else content)
    except ConfigError as error:
        raise VaecliError(f"{path}: its config is not valid: {'; '.join(error.problems)[:1000]}") from error
    except Exception as error:  # a part may be of any wrong type
        raise VaecliError(f"{path}: a part is missing or malformed: {_brief(error)}") from error
    checkpoint.digest = hashlib.sha256(packed).hexdigest()
    return checkpoint


def _upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the content of a checkpoint of an earlier version into that of the present one."""
    content = {**content, "algorithm": {}}
    if content["version"] == 4:
        return content
    if content["version"] == 3:
        return {**content, "run_id": None}
    words = _CONDITIONS_OF_VERSION_2
    conditions = {words.get(name, name): words.get(value, value) for name, value in content["conditions"].items()}
    return {**content, "image_shape": (1, *content["image_shape"]), "conditions": conditions, "run_id": None}


def _parse(content: Mapping[str, Any]) -> Checkpoint:
    """Check every part against the config and the other parts. Raises ConfigError, ValueError and their like."""
    names = {part.name for part in fields(Checkpoint)} - {"digest"}
    given = content.keys() - {"format", "version"}
    if given != names:
        raise KeyError(", ".join(sorted(map(str, given ^ names))))
    values = {name: content[name] for name in names}
    values["config"] = config = parse_config(values["config"])
    values["progress"] = progress = Progress(**values["progress"])
    values["image_shape"] = shape = ImageShape(*values["image_shape"])
    if not all(map(_is_count, shape)) or not shape.is_usable:
        raise ValueError(f"image_shape is {' x '.join(map(repr, shape))}")
    vae = build_meta_vae(config.model, shape, of_vectors=config.data.kind == "vectors")
    _check_tensors("model", values["model"], vae.state_dict())
    if not all(value.isfinite().all() for value in values["model"].values()):
        raise ValueError("model has weights that are not finite")
    _check_tensors("generators", values["generators"], dict.fromkeys(("permutation", "epsilon", "pixels"), torch.uint8))
    _check_memory(values["algorithm"])
    _check_tensors("trace", {"trace": values["trace"]}, {"trace": torch.float32})
    _check_progress(progress, values["trace"], values["permutation"], config)
    _check_optimizer(values["optimizer"], list(vae.parameters()))
    for name, kind in (("logs", int), ("conditions", str)):
        if not isinstance(values[name], dict) or not all(
            isinstance(key, str) and isinstance(value, kind) for key, value in values[name].items()
        ):
            raise TypeError(f"{name} is malformed")
    if not _is_count(values["threads"]) or not 0 < values["threads"] <= 1024:
        raise ValueError(f"threads is {values['threads']!r}")
    if not isinstance(values["data_sha256"], str):
        raise TypeError("data_sha256 is not text")
    if not isinstance(values["run_id"], str | None):
        raise TypeError("run_id is not text")
    return Checkpoint(**values)


def _check_tensors(what: str, tensors: object, expected: Mapping[str, Tensor | torch.dtype]) -> None:
    """Check for tensors of these names and of the type, or the type and the shape, that is expected of each."""
    if not isinstance(tensors, dict) or tensors.keys() != expected.keys():
        raise KeyError(f"{what} does not have the parts {', '.join(expected)}")
    for name, wanted in expected.items():
        tensor, dtype = tensors[name], wanted.dtype if isinstance(wanted, Tensor) else wanted
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
            raise TypeError(f"{what}: {name} is not a tensor of {dtype}")
        if isinstance(wanted, Tensor) and tensor.shape != wanted.shape:
            raise ValueError(
                f"{what}: {name} has shape {tuple(tensor.shape)}; its config asks for {tuple(wanted.shape)}"
            )


def _check_memory(algorithm: object) -> None:
    """Check for finite numbers by name; which there are to be, and of which shape, the algorithm knows."""
    if not isinstance(algorithm, dict) or not all(isinstance(name, str) for name in algorithm):
        raise TypeError("algorithm is malformed")
    _check_tensors("algorithm", algorithm, dict.fromkeys(algorithm, torch.float32))
    if not all(tensor.isfinite().all() for tensor in algorithm.values()):
        raise ValueError("algorithm keeps numbers that are not finite")


def _check_progress(progress: Progress, trace: Tensor, permutation: object, config: Config) -> None:
    counts = (progress.epoch, progress.position, progress.step, progress.images, progress.best_epoch)
    if not all(_is_count(count) for count in counts) or not all(
        isinstance(value, float) for value in (progress.learning_rate, progress.seconds, progress.best_elbo)
    ):
        raise ValueError("progress: a count is not a whole number, or a time or bound is not a number")
    if trace.ndim != 2 or trace.shape[1] != 3 or progress.position > len(trace):
        raise ValueError(f"trace has shape {tuple(trace.shape)} at position {progress.position}")
    if progress.step != progress.epoch * len(trace) + progress.position:
        raise ValueError(f"progress: step {progress.step} is not in epoch {progress.epoch}")
    if permutation is None:
        if progress.position:
            raise ValueError("permutation is missing")
        return
    _check_tensors("permutation", {"permutation": permutation}, {"permutation": torch.int64})
    assert isinstance(permutation, Tensor)
    n = len(permutation) if permutation.ndim == 1 else 0
    if -(-n // config.training.batch_size) != len(trace) or not permutation.sort().values.equal(torch.arange(n)):
        raise ValueError("permutation does not name every training image once")


def _check_optimizer(optimizer: object, parameters: Sequence[Tensor]) -> None:
    """Check that there is nothing, or tensors of its shape and a counter, for each parameter."""
    if not isinstance(optimizer, dict) or not optimizer.keys() <= set(range(len(parameters))):
        raise KeyError("optimizer is not that of the model's parameters")
    counter = torch.zeros(())
    for i, moments in optimizer.items():
        if not isinstance(moments, dict):
            raise TypeError("optimizer is malformed")
        _check_tensors("optimizer", moments, {name: counter if name == "step" else parameters[i] for name in moments})


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:200] or type(error).__name__
