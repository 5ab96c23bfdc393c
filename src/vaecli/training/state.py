"""The state of training: everything that, saved and restored, makes the rest of a run the same to the last bit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from vaecli.config.schema import Config, TrainingConfig
from vaecli.data.dataset import Batch, Images, Preprocess, build_preprocess
from vaecli.data.minibatches import MinibatchRows, gather
from vaecli.data.summaries import mean_image, sha256_of_images
from vaecli.devices import DEFAULTS, PRODUCTS, STEPS, choose_library, conditions, memory
from vaecli.errors import UsageError, VaecliError
from vaecli.model.objectives import draw_noise, kl_weight
from vaecli.model.vae import VAE, build_meta_vae, build_vae
from vaecli.products import Library, has_onednn, use_library
from vaecli.randomness import generator
from vaecli.runs.checkpoint import Checkpoint, Progress
from vaecli.stages import StageCallback, silent, wait_for
from vaecli.training.optimizers import Optimizer, build_optimizer, learning_rate

BYTES_PER_PARAMETER = 16
"""float32: itself, its gradient, and two moments."""
STEPS_TO_COMPILE_FOR = 12_000
"""Compilation takes as long as it saves in so many steps, or in 4,000 where the same was compiled before."""
STEPS_PER_LAUNCH = 25
"""Steps in a CUDA graph."""
STEP = "step"
"""The name under which a checkpoint has the number of steps beside the moments of each parameter, as torch does."""
TrainingStream = Literal["permutation", "epsilon", "pixels"]


class Minibatch(NamedTuple):
    """Hold what one step depends on, beside the state that it changes."""

    pixels: UInt8[Tensor, "M D"]
    kl_weight: float | Float[Tensor, ""]
    learning_rate: float | Float[Tensor, ""]


Chunk = Sequence[Minibatch]
"""The minibatches of one or several steps."""


@dataclass
class TrainingState:
    """Hold what changes while training, and what that depends on."""

    config: Config
    images: Images
    """The training images, on the device where they fit into its memory."""
    preprocess: Preprocess
    """How pixels become x."""
    vae: VAE
    optimizer: Optimizer
    generators: dict[TrainingStream, torch.Generator]
    progress: Progress
    permutation: Tensor | None
    trace: Tensor
    """Loss, log-likelihood and KL of each step of the epoch, on the device, so that no step waits for their values."""
    data_sha256: str
    replicates: int = 1
    """How many states, with this one, are trained as one batched program."""
    compiled: bool = False
    """Whether the gradient is compiled: decided when the run begins, and kept when it is resumed."""
    library: Library = "torch"
    """What makes the matrix products; decided and kept likewise."""

    def __post_init__(self) -> None:
        use_library(self.vae, self.library)

    @property
    def batch_size(self) -> int:
        """Return M, the size of every minibatch but the last of an epoch."""
        return min(self.config.training.batch_size, len(self.images))

    @property
    def steps_per_epoch(self) -> int:
        """Return ⌈N/M⌉."""
        return len(self.trace)

    @property
    def uses_cuda_graph(self) -> bool:
        """Return whether steps are replayed: if asked for, where parameters and images lie on a CUDA device."""
        on_cuda = self.vae.device.type == "cuda" and self.images.pixels.device.type == "cuda"
        return self.config.training.cuda_graph and on_cuda

    @property
    def chunk_size(self) -> int:
        """Return how many steps are made at a time."""
        n_full = len(self.images) // self.batch_size
        return min(STEPS_PER_LAUNCH, n_full) if self.uses_cuda_graph else 1

    def chunks(self) -> Iterator[Chunk]:
        """Yield the minibatches that are left of the epoch, a chunk at a time.

        Each chunk is to be counted before the next is asked for. The first one ends at a multiple of the chunk's size,
        and the last of the epoch may have fewer.
        """
        config, size, pixels = self.config, self.chunk_size, self.minibatches()
        n_steps = config.training.epochs * self.steps_per_epoch
        while batches := list(islice(pixels, size - self.progress.position % size)):
            yield [
                Minibatch(
                    batch,
                    kl_weight(config.objective, step, self.steps_per_epoch),
                    learning_rate(config.optimizer, step, n_steps),
                )
                for step, batch in enumerate(batches, self.progress.step)
            ]

    def minibatches(self) -> Iterator[Tensor]:
        """Yield the pixels of each minibatch that is left of the epoch, uint8 (M, D), on the device."""
        return gather(self.images.pixels, self.rows(), self.vae.device)

    def rows(self) -> Sequence[Tensor]:
        """Return which images make each minibatch that is left of the epoch; draw its permutation if it begins."""
        self.begin_epoch()
        assert self.permutation is not None
        permutation = self.permutation.to(self.images.pixels.device)
        return MinibatchRows(permutation, self.config.training.batch_size, self.progress.position)

    def begin_epoch(self, on_stage: StageCallback = silent) -> None:
        """Draw the epoch's permutation, if it is not drawn yet; what `on_stage` raises leaves the state as it is."""
        if self.permutation is None:
            stream, n = torch.Generator(), len(self.images)
            stream.set_state(self.generators["permutation"].get_state())
            self.permutation = wait_for(
                f"drawing the order of {n:,} images", lambda: torch.randperm(n, generator=stream), on_stage
            )
            self.generators["permutation"].set_state(stream.get_state())

    def draw(self, pixels: UInt8[Tensor, "M D"]) -> tuple[Batch, Float[Tensor, "S M Z"]]:
        """Draw what a step needs from the state's own streams: x from the pixels, and ε."""
        batch = self.preprocess(pixels, self.generators["pixels"])
        return batch, draw_noise(self.vae, batch, self.config.objective.L, self.generators["epsilon"])

    def count(self, chunk: Chunk, terms: Float[Tensor, "n 3"]) -> None:
        """Count the steps of a chunk, and keep their loss, log-likelihood and KL."""
        progress = self.progress
        self.trace[progress.position : progress.position + len(chunk)] = terms
        progress.learning_rate = float(chunk[-1].learning_rate)
        progress.position += len(chunk)
        progress.step += len(chunk)
        progress.images += sum(len(minibatch.pixels) for minibatch in chunk)

    def end_epoch(self) -> None:
        """Complete the epoch, whose steps have all been made."""
        self.permutation = None
        self.progress.epoch += 1
        self.progress.position = 0

    def leave_group(self) -> None:
        """Copy the parameters and buffers, where they are views of those of several states."""
        for tensor in (*self.vae.parameters(), *self.vae.buffers()):
            tensor.data = tensor.data.clone()

    def conditions(self, replicates: int) -> dict[str, str]:
        """Return what, besides the config and the number of threads, decides the bits of so many states together."""
        return conditions(self.vae.device, replicates, compiled=self.compiled, library=self.library)

    def capture(self, log_lengths: Mapping[str, int]) -> Checkpoint:
        """Copy the state into a checkpoint, with the byte lengths of the append-only logs."""
        return Checkpoint(
            config=self.config,
            image_shape=self.images.shape,
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
            conditions=self.conditions(self.replicates),
            data_sha256=self.data_sha256,
            logs=dict(log_lengths),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Return to a captured state. Raises VaecliError where it does not fit."""
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
                moments = {
                    i: {name: moment for name, moment in of_one.items() if name != STEP}
                    for i, of_one in checkpoint.optimizer.items()
                }
                self.optimizer.load_state_dict(moments, checkpoint.progress.step)
            for name, stream in self.generators.items():
                stream.set_state(checkpoint.generators[name])
            self.trace.copy_(checkpoint.trace)
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise VaecliError(f"the checkpoint's training state does not fit its config: {error}") from error
        before = DEFAULTS | checkpoint.conditions
        self.compiled = before[STEPS] == "compiled"
        self.library = "onednn" if before[PRODUCTS] == "onednn" and has_onednn(self.vae.device) else "torch"
        use_library(self.vae, self.library)
        vars(self.progress).update(vars(checkpoint.progress))  # in place: others hold on to it
        self.permutation = checkpoint.permutation

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint's weights and nothing else. Raises VaecliError where they do not fit."""
        try:
            self.vae.load_state_dict(checkpoint.model)
        except RuntimeError as error:
            raise VaecliError("the checkpoint's weights do not fit this config") from error


def new_state(
    config: Config, images: Images, device: torch.device, share: TrainingState | None = None
) -> TrainingState:
    """Build the state before the first step. Raises UsageError where the model is too large.

    Args:
        config: Of the run.
        images: To train on; they go to the device.
        device: Where to train.
        share: A state with the same images on the same device, whose copy of them is used.
    """
    _check_size(config, images, device)
    known = images.pixels.numpy(), images.origin, images.on_stage
    mean = torch.from_numpy(mean_image(*known)) if config.model.init == "mean_image" else None

    def examples(n: int) -> Tensor:
        return images.spread(n).pixels.float() / 255

    vae = build_vae(config.model, images.shape, generator(config.seed, "init"), mean, examples).to(device)
    _check_minibatches(vae, len(images), config.training.batch_size)
    steps = -(-len(images) // config.training.batch_size)
    return TrainingState(
        config=config,
        images=share.images if share else replace(images, pixels=_placed(images.pixels, device)),
        preprocess=build_preprocess(config.model.likelihood.support, config.data),
        vae=vae,
        optimizer=build_optimizer(config.optimizer, vae.parameters()),
        generators={
            "permutation": generator(config.seed, "permutation"),
            "epsilon": generator(config.seed, "epsilon", device),
            "pixels": generator(config.seed, "pixels", device),
        },
        progress=Progress(),
        permutation=None,
        trace=torch.zeros(steps, 3, device=device),
        data_sha256=share.data_sha256 if share else sha256_of_images(*known),
        compiled=_is_compiled(config.training, steps, device),
        library=choose_library(config.training.products, device),
    )


def _check_minibatches(vae: VAE, n_images: int, size: int) -> None:
    """Refuse minibatches of one image where a layer normalises over them. Raises UsageError."""
    if (n_images - 1) % size == 0 and any(isinstance(layer, _BatchNorm) for layer in vae.modules()):
        raise UsageError(
            f"training.batch_size: of {n_images:,} images, {size} at a time, the last is alone in its minibatch, over "
            "which model.normalization: batch cannot normalise; choose another size, or layer"
        )


def _is_compiled(config: TrainingConfig, steps_per_epoch: int, device: torch.device) -> bool:
    """Decide by the amount of work and not by a measurement, since it decides the bits."""
    pays = config.compile == "auto" and config.epochs * steps_per_epoch >= STEPS_TO_COMPILE_FOR
    return device.type == "cpu" and (pays or config.compile == "on")


def _placed(pixels: UInt8[Tensor, "N D"], device: torch.device) -> UInt8[Tensor, "N D"]:
    """Put the pixels on the device, if they take no more than half of its memory; else leave them where they are."""
    available = memory(device)
    return pixels if available is not None and 2 * pixels.numel() > available else pixels.to(device)


def _check_size(config: Config, images: Images, device: torch.device) -> None:
    """Refuse a model whose parameters, gradient and moments no memory here could hold, before any is taken."""
    n = sum(parameter.numel() for parameter in build_meta_vae(config.model, images.shape).parameters())
    needed, available = n * BYTES_PER_PARAMETER, memory(device)
    if available is not None and needed > available:
        raise UsageError(
            f"model: {n:,} parameters take {needed / 2**30:,.1f} GiB to train, and {available / 2**30:,.1f} is all "
            f"that may be used here ({device}); make model.hidden_dim or model.latent_dim smaller"
        )


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy every tensor to the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
