"""`vae evaluate`: the metrics of a run on held-out images."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vaecli.cli.app import RUNS, Ckpt, DataDir, Json, Quiet, RunsDir, SplitName, app, examples, note, result

if TYPE_CHECKING:
    from vaecli.evaluation.result import Evaluation


@app.command(
    epilog=examples(
        "vae evaluate --ckpt 20261122-1431",
        "vae evaluate --ckpt 20261122-1431 --split validation --limit 1000",
        "vae evaluate --ckpt 20261122-1431 --proposal encoder --k 5000",
        "vae evaluate --ckpt 20261122-1431 --no-binarised --json",
    )
)
def evaluate(
    ckpt: Ckpt,
    proposal: Annotated[
        Literal["fitted", "encoder"],
        typer.Option("--proposal", help="Importance samples from a proposal fitted to each image, or from q(z|x)."),
    ] = "fitted",
    k: Annotated[int, typer.Option("--k", min=1, max=10_000_000, help="Importance samples per image.")] = 500,
    split: SplitName = "test",
    limit: Annotated[
        int | None, typer.Option("--limit", min=2, help="Only so many images, evenly spaced over the split.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of evaluation's own random numbers.")] = 0,
    binarised: Annotated[
        bool, typer.Option("--binarised/--no-binarised", help="Evaluate the likelihood of binarised images as well.")
    ] = True,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Evaluate a run: bounds, evidence, diagnostics, and metrics that mean the same for every decoder."""
    from vaecli.runs.run import find_run

    run = find_run(ckpt, runs_dir)
    from dataclasses import asdict

    from vaecli.cli.progress import show_stages
    from vaecli.evaluation.evaluate import evaluate as evaluate_run

    if run.file is None and run.is_training and not quiet:
        note(f"{run.name} is still training: its newest checkpoint is evaluated")
    with show_stages(quiet=quiet or as_json) as callback:
        found = evaluate_run(
            run, proposal=proposal, k=k, split=split, limit=limit, seed=seed, binarised=binarised,
            device=device, data_dir=data_dir, callback=callback,
        )  # fmt: skip
    result(asdict(found) if as_json else table(found, run.config.model.latent_dim))


def table(found: "Evaluation", latent_dim: int) -> str:
    """Format the metrics in lines, with their units and errors."""
    caveat = f"  ({found.caveat})" if found.caveat else ""
    terms = f"{found.log_likelihood:.2f} - {found.kl:.2f}"
    lines = [
        f"{found.decoder}, {found.checkpoint}: {found.n_images} {found.split} images, pixels {found.observed}{caveat}",
        f"ELBO                  {found.elbo:.2f} ± {found.elbo_se:.2f} nats = {terms}",
        _estimate("log evidence", "log_evidence", found, "nats", 2),
        "  by k                " + ", ".join(f"{k}: {v:.2f}" for k, v in found.log_evidence_by_k.items()),
    ]
    if found.bits_per_dim is not None:
        lines.append(_estimate("bits per dimension", "bits_per_dim", found, "bits", 4))
    if found.mass_outside is not None:
        lines.append(f"  mass outside [0, 1) {found.mass_outside:.4f}")
    if found.bits_per_dim_clamped is not None:
        lines.append(f"  clamped             {found.bits_per_dim_clamped:.4f}: a censored model, not to be ranked")
    if found.binarised_nll is not None:
        lines.append(_estimate("binarised NLL", "binarised_nll", found, "nats", 2))
    lines += [
        f"mean squared error    {found.mean_squared_error:.5f}",
        f"active latent units   {found.active_units} of {latent_dim}",
    ]
    if found.pixels_at_floor is not None:
        lines.append(f"scales at the floor   {100 * found.pixels_at_floor:.1f} %")
    return "\n".join(lines)


def _estimate(title: str, metric: str, found: "Evaluation", unit: str, digits: int) -> str:
    """Format a metric that is estimated by importance samples: its errors, and whether it is only a bound."""
    value, error, mc_error, size, low = (
        getattr(found, metric + suffix) for suffix in ("", "_se", "_mc_se", "_effective_sample_size", "_low_share")
    )
    few = f", below 5 for {100 * low:.1f} % of images" if low else ""
    bound = "" if found.is_known(metric) else "; A BOUND, NOT AN ESTIMATE"
    return (
        f"{title:<21} {value:.{digits}f} ± {error:.{digits}f} {unit} (Monte-Carlo error {mc_error:.{digits + 1}f}; "
        f"{size:.0f} of {found.k} {found.proposal} samples effective{few}{bound})"
    )
