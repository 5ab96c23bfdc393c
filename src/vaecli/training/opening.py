"""How a session of training begins: with a new run, or with one that goes on from where it was."""

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from vaecli import devices
from vaecli.config.loading import fixed_differences
from vaecli.config.schema import RESUMABLE, Config
from vaecli.config.sections import TrainingConfig
from vaecli.data.dataset import SPLITS, Dataset, Images
from vaecli.data.preprocess import build_preprocess, check_labels
from vaecli.data.summaries import fingerprint, mean_image, sha256_of_images
from vaecli.data.vectors import Units
from vaecli.errors import ReproducibilityWarning, UsageError, VaecliError, command_line, in_plain_words
from vaecli.files import may_be_file
from vaecli.model.algorithms import build_algorithm
from vaecli.model.networks import AT_MEAN_IMAGE
from vaecli.model.vae import VAE, build_meta_vae, build_vae
from vaecli.randomness import generator
from vaecli.runs.checkpoint import Checkpoint, Progress
from vaecli.runs.run import Run, create_run, find_run
from vaecli.training.optimizers import build_optimizer
from vaecli.training.session import Controls, Session
from vaecli.training.state import TrainingState

BYTES_PER_PARAMETER = 16
"""float32: itself, its gradient, and two moments."""
STEPS_TO_COMPILE_FOR = 12_000
"""Compilation takes as long as it saves in so many steps, or in 4,000 where the same was compiled before."""


def start_session(
    config: Config,
    runs_dir: str | Path,
    data_dir: str | Path | None,
    controls: Controls,
    *,
    init_from: Run | None = None,
    share: Session | None = None,
) -> Session:
    """Make the run directory of a new run, and all that it needs to be trained; arguments and errors as for `train`.

    `share` is a session whose images can be used, its config being the same but for the seed.
    """
    state, dataset = first_state(config, data_dir, controls, init_from, share)
    run = create_run(
        config,
        Path(runs_dir),
        device=devices.describe(state.vae.device),
        threads=torch.get_num_threads(),
        matrix_products=state.library,
        data_sha256=fingerprint(config.data.name, controls.on_stage),
        initialised_from=None if init_from is None else str(init_from.checkpoint_path),
    )
    return Session(run, run.lock(), state, dataset, {}, controls)


def resume_session(
    run: Run,
    config: Config | None,
    data_dir: str | Path | None,
    controls: Controls,
    *,
    replicates: int = 1,
    share: Session | None = None,
) -> Session:
    """Bring a run back to where it was; arguments and errors as for `resume`, `share` as for `start_session`.

    `replicates` is how many runs are trained as one batched program, with this one. The lock is taken before anything
    is read, so that nothing that was read is out of date.
    """
    if run.file is not None and run.file.resolve() != run.last.resolve():
        raise UsageError(f"{run.file}: a run goes on from its last checkpoint; --init-from starts anew from this one")
    lock = run.lock()
    try:
        checkpoint = run.load(run.last) if may_be_file(run.last) else None
        config = _resumable(run, checkpoint, config)
        if checkpoint is None:
            source = run.environment.get("initialised_from")
            init_from = find_run(str(source), run.path) if source else None
            state, dataset = first_state(config, data_dir, controls, init_from, share)
        else:
            torch.set_num_threads(checkpoint.threads)
            state, dataset = first_state(config, data_dir, controls, None, share)
            state.restore(checkpoint)
            changes = checkpoint.changed_conditions(state.conditions(replicates)) if checkpoint.progress.step else []
            if changes:
                message = f"{run.name}: may not end in the same bits as an uncut run: {'; '.join(changes)}"
                warnings.warn(message, ReproducibilityWarning, stacklevel=3)
        run.write_config(config)
    except BaseException:
        lock.close()
        raise
    return Session(run, lock, state, dataset, checkpoint.logs if checkpoint else {}, controls)


def first_state(
    config: Config, data_dir: str | Path | None, controls: Controls, init_from: Run | None, share: Session | None
) -> tuple[TrainingState, Dataset]:
    """Return the state before the first step, and the images."""
    device = devices.resolve_device(config.device)
    devices.flush_subnormals()
    devices.repeat_sums()
    devices.allow_tf32(device, config.training.tf32)
    if share is not None and share.state.vae.device != device:
        share = None
    support, directory = config.support, None if data_dir is None else Path(data_dir)
    dataset = share.dataset if share else Dataset(config.data, support, directory, controls.on_stage)
    _ = dataset.test  # which the end of training needs: better known to be there before than after
    if config.model.n_classes:
        for split in SPLITS:
            check_labels(dataset.split(split).labels, config.model.n_classes)
    try:
        state = new_state(config, dataset.train, device, share.state if share else None, dataset.units)
    except (MemoryError, RuntimeError) as error:
        raise in_plain_words(error, 1) from None
    if init_from is not None:
        if init_from.config.model.model_dump(exclude={"init"}) != config.model.model_dump(exclude={"init"}):
            raise UsageError(f"{init_from.name}: has the weights of another model; the `model` sections must agree")
        state.load_weights(init_from.checkpoint)
        _take(state.vae, dataset.units)  # of these vectors, and not of those that the weights come from
        state.algorithm = build_algorithm(config, state.vae, len(dataset.train))  # what it draws, of these weights
    return state, dataset


def _resumable(run: Run, checkpoint: Checkpoint | None, config: Config | None) -> Config:
    """Return the config to resume with. Raises an error where nothing can be resumed, or not with these changes."""
    if checkpoint is None and (not may_be_file(run.path / "config.yaml") or run.metrics):
        raise VaecliError(f"{run.path}: has no checkpoint to go on from")
    config = config or run.config
    old, epochs = checkpoint.config if checkpoint else run.config, config.training.epochs
    if fixed_differences(config, old):
        raise UsageError(f"{run.name}: a run is resumed with its own config; only {', '.join(RESUMABLE)} may change")
    if epochs != old.training.epochs and config.optimizer.schedule != "constant":
        again = command_line("vae", "train", "--config", run.path / "config.yaml", "--init-from", run.path)
        raise UsageError(
            f"{run.name}: its {config.optimizer.schedule} schedule ends at epoch {old.training.epochs}, so it cannot "
            f"be extended to {epochs}; start a new run from its weights: {again} training.epochs={epochs}"
        )
    if checkpoint and epochs < checkpoint.progress.epoch:
        raise UsageError(f"{run.name}: has {checkpoint.progress.epoch} epochs already; training.epochs={epochs}")
    return config


def new_state(
    config: Config,
    images: Images,
    device: torch.device,
    share: TrainingState | None = None,
    units: Units | None = None,
) -> TrainingState:
    """Build the state before the first step. Raises UsageError where the model is too large.

    Args:
        config: Of the run.
        images: To train on; they go to the device.
        device: Where to train.
        share: A state with the same images on the same device, whose copy of them is used.
        units: What vectors were standardised by; None of images.
    """
    _check_size(config, images, device)
    known = images.pixels.numpy(), images.origin, images.on_stage
    mean = None
    if config.model.init in AT_MEAN_IMAGE:
        mean = torch.from_numpy(mean_image(*known)) if units is None else torch.zeros(images.shape.n_pixels)

    def examples(n: int) -> Tensor:
        return images.spread(n).pixels.float() / 255

    start = generator(config.seed, "init")
    vae = build_vae(config.model, images.shape, start, mean, examples, of_vectors=units is not None)
    _take(vae, units)
    vae = vae.to(device)
    _check_minibatches(vae, len(images), config.training.batch_size)
    steps = -(-len(images) // config.training.batch_size)
    return TrainingState(
        config=config,
        images=share.images if share else replace(images, pixels=_placed(images.pixels, device)),
        preprocess=build_preprocess(config.support, config.data, config.model.n_classes),
        vae=vae,
        algorithm=build_algorithm(config, vae, len(images)),
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
        library=devices.choose_library(config.training.products, device),
    )


def _take(vae: VAE, units: Units | None) -> None:
    """Let a model hold what vectors were standardised by."""
    if units is not None and vae.units is not None:
        vae.units.take(units)


def _is_compiled(config: TrainingConfig, steps_per_epoch: int, device: torch.device) -> bool:
    """Decide by the amount of work and not by a measurement, since it decides the bits."""
    pays = config.compile == "auto" and config.epochs * steps_per_epoch >= STEPS_TO_COMPILE_FOR
    return device.type == "cpu" and (pays or config.compile == "on")


def _check_minibatches(vae: VAE, n_images: int, size: int) -> None:
    """Refuse minibatches of one image where a layer normalises over them. Raises UsageError."""
    if (n_images - 1) % size == 0 and any(isinstance(layer, _BatchNorm) for layer in vae.modules()):
        raise UsageError(
            f"training.batch_size: of {n_images:,} images, {size} at a time, the last is alone in its minibatch, over "
            "which model.normalization: batch cannot normalise; choose another size, or layer"
        )


def _placed(pixels: Shaped[Tensor, "N D"], device: torch.device) -> Shaped[Tensor, "N D"]:
    """Put the pixels on the device, if they take no more than half of its memory; else leave them where they are."""
    available = devices.memory(device)
    return pixels if available is not None and 2 * pixels.nbytes > available else pixels.to(device)


def _check_size(config: Config, images: Images, device: torch.device) -> None:
    """Refuse a model whose parameters, gradient and moments no memory here could hold, before any is taken."""
    n = sum(parameter.numel() for parameter in build_meta_vae(config.model, images.shape).parameters())
    needed, available = n * BYTES_PER_PARAMETER, devices.memory(device)
    if available is not None and needed > available:
        raise UsageError(
            f"model: {n:,} parameters take {needed / 2**30:,.1f} GiB to train, and {available / 2**30:,.1f} is all "
            f"that may be used here ({device}); make model.hidden_dim or model.latent_dim smaller"
        )
