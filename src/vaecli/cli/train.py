"""`vae train`: train a new run, or resume one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaecli.cli import completion
from vaecli.cli.app import RUNS, DataDir, Json, Quiet, RunsDir, StopOnSignal, app, caveats, examples, note, result
from vaecli.errors import InterruptedRunError, UsageError, command_line

if TYPE_CHECKING:
    from vaecli.config.schema import Config
    from vaecli.runs.run import Run
    from vaecli.training.stopping import Limit


@app.command(
    epilog=examples(
        "vae train --config bernoulli.yaml",
        "vae train --config gaussian model.latent_dim=10 objective.L=5 --seed 1",
        "vae train --config mine.yaml --dry-run",
        "vae train --resume 20261122-1431",
        "vae train --config bernoulli --max-time 2h  # exit code 6; vae train --resume goes on, to the same bits",
    )
)
def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings over the config's, as model.latent_dim=10.",
            autocompletion=completion.settings,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config", "-c", help="A path, or the name of a shipped config.", autocompletion=completion.configs
        ),
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with a run.", autocompletion=completion.runs)
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="RUN",
            help="Start a new run from the weights of another.",
            autocompletion=completion.runs,
        ),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The same as seed=N.")] = None,
    max_time: Annotated[
        str | None, typer.Option("--max-time", metavar="TIME", help="Checkpoint and stop after 90s, 45m, 2h, 1h30m.")
    ] = None,
    max_images: Annotated[
        int | None, typer.Option("--max-images", min=1, help="Checkpoint and stop after so many more images.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what a run would take, from some steps that are timed; keep nothing.")
    ] = False,
    runs_dir: RunsDir = RUNS,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a VAE; the last line printed is its run directory."""
    from vaecli.config.loading import load_config, override
    from vaecli.runs.run import find_run
    from vaecli.training.stopping import Limit, duration

    limit = Limit(None if max_time is None else duration(max_time), max_images)
    overrides = list(settings or [])
    overrides += [f"device={device}"] if device is not None else []
    overrides += [f"seed={seed}"] if seed is not None else []
    if resume is not None:
        if dry_run:
            raise UsageError("--dry-run is about a new run; leave --resume out, and name its --config")
        if config is not None or init_from is not None:
            raise UsageError("--resume goes on with a run's own config; leave --config and --init-from out")
        old = find_run(resume, runs_dir)
        chosen = override(old.config, overrides)
    else:
        if config is None:
            raise UsageError("train needs --config FILE (for example --config bernoulli.yaml) or --resume RUN")
        chosen = load_config(config, overrides)
        old = None
    source = None if init_from is None else find_run(init_from, runs_dir)
    if not quiet and not as_json:
        for caveat in caveats([chosen], overrides):
            note(caveat)
    if dry_run:
        _forecast(chosen, data_dir, quiet=quiet or as_json, as_json=as_json)
        return
    _run(chosen, old, source, runs_dir, data_dir, limit, quiet=quiet or as_json, as_json=as_json)


def _forecast(config: "Config", data_dir: Path | None, *, quiet: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from vaecli.cli.progress import show_training
    from vaecli.cli.stages import clock
    from vaecli.training.forecast import forecast

    with show_training(quiet=quiet) as progress:
        found = forecast(config, data_dir=data_dir, on_stage=progress.on_stage)
    if as_json:
        result(asdict(found))
        return
    parts = [f"encoder {found.encoder_parameters:,}", f"decoder {found.decoder_parameters:,}"]
    parts += [f"prior {found.prior_parameters:,}"] if found.prior_parameters else []
    total = found.encoder_parameters + found.decoder_parameters + found.prior_parameters
    how = f"{1000 * found.seconds_per_step:.2f} ms a step, the mean of {found.timed_steps} made now"
    lines = [
        f"device      {found.device}",
        f"model       {total:,} parameters: {', '.join(parts)}",
        f"steps       {found.steps:,}: {config.training.epochs} epochs of {found.steps_per_epoch:,}",
        f"time        {clock(found.seconds)} at {how}, and the validation bound",
        f"disk        {2 * found.checkpoint_bytes / 1e6:.1f} MB of checkpoints, beside curves and pictures",
    ]
    if found.compiled:
        lines.append("            steps would be compiled, which makes them faster; those that were timed were not")
    if config.training.patience is not None:
        lines.append(f"            training.patience: {config.training.patience} may end it before")
    result("\n".join(lines))


def _run(
    config: "Config",
    old: "Run | None",
    source: "Run | None",
    runs_dir: Path,
    data_dir: Path | None,
    limit: "Limit",
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    from vaecli.cli.progress import show_training
    from vaecli.training import loop

    with StopOnSignal() as stop, show_training(quiet=quiet) as progress:
        try:
            if old is None:
                run = loop.train(
                    config,
                    runs_dir=runs_dir,
                    data_dir=data_dir,
                    init_from=source,
                    callback=progress,
                    stop=stop,
                    limit=limit,
                    on_stage=progress.on_stage,
                )
            else:
                run = loop.resume(
                    old,
                    config,
                    data_dir=data_dir,
                    callback=progress,
                    stop=stop,
                    limit=limit,
                    on_stage=progress.on_stage,
                )
        except InterruptedRunError as error:
            where = progress.run or old
            hint = "" if where is None else f"; go on with: {command_line('vae', 'train', '--resume', where.path)}"
            raise type(error)(f"{error}{hint}") from error
    if as_json:
        result({"run": str(run.path), **run.status})
        return
    if not quiet:
        _summary(run)
    result(str(run.path))


def _summary(run: "Run") -> None:
    from vaecli.cli.runs import format_bound

    status = run.status
    if status.get("best"):
        caveat = f" ({status['caveat']})" if status.get("caveat") else ""
        best = status["best"]
        note(f"{status['state']}: best validation {format_bound(best)}, epoch {best['epoch']}{caveat}")
    note(f"samples: {run.path / 'samples' / 'prior.png'}")
    note(f"curves:  {command_line('tensorboard', '--logdir', run.path.parent.parent)}")
