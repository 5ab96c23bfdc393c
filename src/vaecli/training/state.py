"""The state of training: everything that, saved and restored, makes the rest of a run the same to the last bit."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from vaecli.config.schema import Config, OptimizerConfig, TrainingConfig
from vaecli.data.dataset import Images
from vaecli.data.minibatches import gather
from vaecli.devices import STEPS, conditions, memory
from vaecli.errors import UsageError, VaecliError
from vaecli.model.vae import VAE, build_vae, outline
from vaecli.randomness import generator
from vaecli.runs.checkpoint import Checkpoint, Progress
from vaecli.training.optimizers import Adagrad, Adam, Optimizer

BYTES_PER_PARAMETER = 16
"""float32: itself, its gradient, and two moments."""
STEPS_TO_COMPILE_FOR = 50_000
"""Compilation takes as long as it saves in some 20,000."""
STEP = "step"
"""The name under which a checkpoint has the number of steps beside the moments of each parameter, as torch does."""
TrainingStream = Literal["permutation", "epsilon", "pixels"]


@dataclass
class TrainingState:
    """What changes while training, and what that depends on."""

    config: Config
    images: Images
    """The training images, on the device where they fit into its memory."""
    vae: VAE
    optimizer: Optimizer
    generators: dict[TrainingStream, torch.Generator]
    progress: Progress
    permutation: Tensor | None
    trace: Tensor
    """Loss, log-likelihood and KL of each step of the epoch, on the device, so that no step waits for a figure."""
    data_sha256: str
    replicates: int = 1
    """How many states, with this one, are moved as one batched program."""
    compiled: bool = False
    """Whether the gradient is compiled: decided when the run begins, and kept to."""

    @property
    def batch_size(self) -> int:
        """M, of every minibatch but the last of an epoch."""
        return min(self.config.training.batch_size, len(self.images))

    @property
    def steps_per_epoch(self) -> int:
        """⌈N/M⌉."""
        return len(self.trace)

    def minibatches(self) -> Iterator[Tensor]:
        """The pixels of each minibatch that is left of the epoch, uint8 (M, D), on the device."""
        return gather(self.images.pixels, self.rows(), self.vae.device)

    def rows(self) -> Sequence[Tensor]:
        """Which images make each minibatch that is left of the epoch; its permutation is drawn when it begins."""
        if self.permutation is None:
            self.permutation = torch.randperm(len(self.images), generator=self.generators["permutation"])
        rows: tuple[Tensor, ...] = self.permutation.to(self.images.pixels.device).split(self.config.training.batch_size)
        return rows[self.progress.position :]

    def leave_the_others(self) -> None:
        """Hold tensors of its own, where they are views of those of several states."""
        for parameter in self.vae.parameters():
            parameter.data = parameter.data.clone()
        for kept in self.optimizer.moments.values():
            kept[:] = [moment.clone() for moment in kept]

    def capture(self, logs: Mapping[str, int]) -> Checkpoint:
        """A copy of the whole state."""
        return Checkpoint(
            config=self.config,
            image_shape=(self.images.height, self.images.width),
            model=_on_cpu(self.vae.state_dict()),
            optimizer={
                i: {STEP: torch.tensor(float(self.progress.step)), **_on_cpu(moments)}
                for i, moments in self.optimizer.state_dict().items()
            },
            progress=replace(self.progress),
            generators={name: stream.get_state() for name, stream in self.generators.items()},
            permutation=None if self.permutation is None else self.permutation.clone(),
            trace=self.trace.cpu().clone(),
            threads=torch.get_num_threads(),
            conditions=conditions(self.vae.device, self.replicates, compiled=self.compiled),
            data_sha256=self.data_sha256,
            logs=dict(logs),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a captured state. Raises VaecliError where it does not fit."""
        if checkpoint.data_sha256 != self.data_sha256:
            raise VaecliError(f"{self.config.data.name}: is not the data that the run was trained on; it cannot go on")
        if any(s.get_state().numel() != checkpoint.generators[n].numel() for n, s in self.generators.items()):
            raise UsageError(
                f"the run was trained on another kind of device than {self.vae.device.type}, whose random numbers "
                "cannot be continued here; name that one with --device, or start a new run with --init-from"
            )
        self.load_weights(checkpoint)
        try:
            if checkpoint.optimizer or checkpoint.progress.step:  # before the first step there may be none
                self.optimizer.load_state_dict(
                    {
                        i: {name: moment for name, moment in moments.items() if name != STEP}
                        for i, moments in checkpoint.optimizer.items()
                    }
                )
            for name, stream in self.generators.items():
                stream.set_state(checkpoint.generators[name])
            self.trace.copy_(checkpoint.trace)
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise VaecliError(f"the checkpoint's training state does not fit its config: {error}") from error
        self.compiled = checkpoint.conditions.get(STEPS) == "compiled"
        self.progress = replace(checkpoint.progress)
        self.permutation = checkpoint.permutation

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint's weights and nothing else. Raises VaecliError where they do not fit."""
        try:
            self.vae.load_state_dict(checkpoint.model)
        except RuntimeError as error:
            raise VaecliError("the checkpoint's weights do not fit this config") from error


def new_state(
    config: Config, images: Images, device: torch.device, beside: TrainingState | None = None
) -> TrainingState:
    """The state before the first step. Raises UsageError where the model is too large.

    Args:
        config: Of the run.
        images: To train on; they go to the device.
        device: Where to.
        beside: A state with the same images on the same device, to be shared.
    """
    _check_size(config, images.pixels.shape[1], device)
    vae = build_vae(config.model, images.pixels.shape[1], generator(config.seed, "init"), images.mean).to(device)
    steps = -(-len(images) // config.training.batch_size)
    return TrainingState(
        config=config,
        images=beside.images if beside else replace(images, pixels=_placed(images.pixels, device)),
        vae=vae,
        optimizer=build_optimizer(config.optimizer, vae),
        generators={
            "permutation": generator(config.seed, "permutation"),
            "epsilon": generator(config.seed, "epsilon", device),
            "pixels": generator(config.seed, "pixels", device),
        },
        progress=Progress(),
        permutation=None,
        trace=torch.zeros(steps, 3, device=device),
        data_sha256=beside.data_sha256 if beside else hashlib.sha256(images.pixels.numpy().data).hexdigest(),
        compiled=_is_compiled(config.training, steps, device),
    )


def _is_compiled(config: TrainingConfig, steps_per_epoch: int, device: torch.device) -> bool:
    """By the amount of work and not by a measurement, since it decides the bits."""
    pays = config.compile == "auto" and config.epochs * steps_per_epoch >= STEPS_TO_COMPILE_FOR
    return device.type == "cpu" and (pays or config.compile == "on")


def _placed(pixels: UInt8[Tensor, "N D"], device: torch.device) -> UInt8[Tensor, "N D"]:
    """The pixels on the device, if they take no more than half of its memory; else where they are."""
    there = memory(device)
    return pixels if there is not None and 2 * pixels.numel() > there else pixels.to(device)


def _check_size(config: Config, n_pixels: int, device: torch.device) -> None:
    """Refuse a model whose parameters, gradient and moments no memory here could hold, before any is taken."""
    n = sum(parameter.numel() for parameter in outline(config.model, n_pixels).parameters())
    needed, there = n * BYTES_PER_PARAMETER, memory(device)
    if there is not None and needed > there:
        raise UsageError(
            f"model: {n:,} parameters take {needed / 2**30:,.0f} GiB to train, and this machine's {device} has "
            f"{there / 2**30:,.0f}; make model.hidden_dim or model.latent_dim smaller"
        )


def build_optimizer(config: OptimizerConfig, vae: VAE) -> Optimizer:
    """The optimiser that a config names."""
    return {"adam": Adam, "adagrad": Adagrad}[config.name](vae.parameters(), config.weight_decay)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of every tensor, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
