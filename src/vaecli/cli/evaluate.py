"""`vae evaluate`: the metrics of a run on held-out images."""

from dataclasses import asdict
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vaecli.cli.app import RUNS, Ckpt, DataDir, Json, Quiet, RunsDir, SplitName, app, examples, note, result
from vaecli.errors import UsageError

if TYPE_CHECKING:
    from vaecli.evaluation.calibration import Calibration
    from vaecli.evaluation.result import AnnealedEvaluation, Evaluation, Gaps

IMPORTANCE, ANNEALED = ("--method importance",), ("--method ais", "--method posterior")
GO_WITH = {
    **dict.fromkeys(("proposal", "k", "binarised"), IMPORTANCE),
    **dict.fromkeys(("temperatures", "chains", "start"), ANNEALED),
    "bracket": ("--method ais",),
    "split": (*IMPORTANCE, *ANNEALED, "--gaps"),
}
"""The kinds of evaluation that an option has an effect on, of those that have one on some only."""


@app.command(
    epilog=examples(
        "vae evaluate --ckpt 20261122-1431",
        "vae evaluate --ckpt 20261122-1431 --split validation --limit 1000",
        "vae evaluate --ckpt 20261122-1431 --proposal encoder --k 5000",
        "vae evaluate --ckpt 20261122-1431 --method ais --bracket --limit 100",
        "vae evaluate --ckpt 20261122-1431 --gaps --limit 500",
        "vae evaluate --ckpt 20261122-1431 --calibration",
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
    method: Annotated[
        Literal["importance", "ais", "posterior"],
        typer.Option(
            "--method",
            help="How the evidence is estimated: by importance sampling; by annealing, which is slower, to check it; "
            "or from posterior samples, the paper's way for few latent dimensions.",
        ),
    ] = "importance",
    temperatures: Annotated[int, typer.Option("--temperatures", min=1, help="Transitions of every chain.")] = 1000,
    chains: Annotated[int, typer.Option("--chains", min=2, help="Chains, or posterior samples, for each image.")] = 8,
    start: Annotated[Literal["fitted", "prior"], typer.Option("--start", help="Where annealing begins.")] = "fitted",
    bracket: Annotated[
        bool, typer.Option("--bracket", help="Bracket the evidence of images that the model draws, from both sides.")
    ] = False,
    gaps: Annotated[
        bool, typer.Option("--gaps", help="Split what the bound loses into approximation and amortisation gap.")
    ] = False,
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration", help="Draw images from the model and see where their z lie among draws of q(z|x)."
        ),
    ] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Evaluate a run: bounds, evidence, diagnostics, and metrics that mean the same for every decoder."""
    from vaecli.runs.run import find_run

    run = find_run(ckpt, runs_dir)
    if gaps and method != "importance":
        raise UsageError("--gaps goes with importance sampling: leave --method out")
    if calibration and (gaps or method != "importance"):
        raise UsageError("--calibration goes by itself: leave --gaps and --method out")
    _check_options(
        "--calibration" if calibration else "--gaps" if gaps else f"--method {method}",
        proposal=proposal, k=k, binarised=binarised, split=split,
        temperatures=temperatures, chains=chains, start=start, bracket=bracket,
    )  # fmt: skip
    from vaecli.cli.progress import show_stages

    if run.file is None and run.is_training and not quiet:
        note(f"{run.name} is still training: its newest checkpoint is evaluated")
    with show_stages(quiet=quiet or as_json) as callback:
        found: Evaluation | AnnealedEvaluation | Gaps | Calibration
        if calibration:
            from vaecli.evaluation.calibration import evaluate_calibration
            from vaecli.reports.diagnostics import draw_calibration

            found, path = evaluate_calibration(run, n=limit or 1000, seed=seed, device=device, callback=callback)
            text = calibration_table(found, draw_calibration(found, path))
        elif gaps:
            from vaecli.config.jobs import GapsSpec
            from vaecli.evaluation.gaps import evaluate_gaps
            from vaecli.reports.diagnostics import draw_gaps

            of_images = GapsSpec(split=split, limit=limit or 1000, seed=seed)
            found, path = evaluate_gaps(run, of_images, device=device, data_dir=data_dir, callback=callback)
            text = gaps_table(found, draw_gaps(path))
        elif method == "importance":
            from vaecli.evaluation.evaluate import evaluate as evaluate_run

            found = evaluate_run(
                run, proposal=proposal, k=k, split=split, limit=limit, seed=seed, binarised=binarised,
                device=device, data_dir=data_dir, callback=callback,
            )  # fmt: skip
            text = table(found, run.config.model.latent_dim)
        else:
            from vaecli.config.jobs import AnnealingSpec
            from vaecli.evaluation.annealed import evaluate_annealed

            spec = AnnealingSpec(
                method=method, temperatures=temperatures, chains=chains, start=start, bracket=bracket,
                split=split, limit=limit or 100, seed=seed,
            )  # fmt: skip
            found = evaluate_annealed(run, spec, device=device, data_dir=data_dir, callback=callback)
            text = annealed_table(found)
    result(asdict(found) if as_json else text)


def _check_options(kind: str, **values: object) -> None:
    """Refuse options that have no effect on a kind of evaluation, unless they say what is so anyway.

    Raises:
        UsageError: There is one.
    """
    parameters = signature(evaluate).parameters
    for name, value in values.items():
        if kind not in GO_WITH[name] and value != parameters[name].default:
            raise UsageError(f"--{name} goes with {' or '.join(GO_WITH[name])}, not with {kind}: leave it out")


def annealed_table(found: "AnnealedEvaluation") -> str:
    """Format the evidence by annealing, or from posterior samples, beside that of fitted proposals."""
    ways = {"ais": f"annealing from the {found.start}", "posterior": "posterior samples"}
    accepted = "" if found.acceptance is None else f"; {100 * found.acceptance:.0f} % of transitions accepted"
    error = "" if found.log_evidence_mc_se is None else f" (Monte-Carlo error {found.log_evidence_mc_se:.3f}{accepted})"
    most = f"{found.largest_difference:.3f} for one {found.what} at most"
    lines = [
        f"{_about(found)}; {found.chains} chains of {found.temperatures} transitions",
        f"{ways[found.method]:<32} {found.log_evidence:.3f} ± {found.log_evidence_se:.3f} nats{error}",
        f"{'importance sampling, fitted':<32} {found.fitted_log_evidence:.3f} nats",
        f"{'  difference':<32} {found.difference:+.3f} nats, {most}",
    ]
    if found.simulated_lower is not None:
        lines += [
            f"on {found.what}s that the model drew:",
            (
                f"{'  bracket':<32} {found.simulated_lower:.3f} to {found.simulated_upper:.3f} nats, "
                f"{found.simulated_gap:.3f} apart"
            ),
            f"{'  importance sampling, fitted':<32} {found.simulated_fitted:.3f} nats",
        ]
    return "\n".join(lines)


def gaps_table(found: "Gaps", picture: object) -> str:
    """Format where the bound is lost, from the evidence down to the ELBO."""
    return "\n".join(
        [
            _about(found),
            f"log evidence          {found.log_evidence:.2f} ± {found.log_evidence_se:.2f} nats",
            (
                f"  approximation gap   {found.approximation_gap:.2f} ± {found.approximation_gap_se:.2f}: "
                "no diagonal Gaussian does better"
            ),
            f"best ELBO             {found.best_elbo:.2f} ± {found.best_elbo_se:.2f}",
            (
                f"  amortisation gap    {found.amortisation_gap:.2f} ± {found.amortisation_gap_se:.2f}: "
                f"one encoder for all {found.what}s does not find it"
            ),
            f"ELBO                  {found.elbo:.2f} ± {found.elbo_se:.2f}",
            (
                f"KL to the prior       {found.kl:.2f} = mutual information {found.mutual_information:.2f} "
                f"+ KL of the aggregated posterior {found.kl_of_aggregate:.2f}"
            ),
            f"picture               {picture}",
        ]
    )


def calibration_table(found: "Calibration", picture: object) -> str:
    """Format how uniform the ranks of z are in the latent dimensions, of these the least uniform."""
    n, n_dims, level = found.n_images, len(found.mean), 0.05
    order = sorted(range(n_dims), key=lambda i: found.chi_square_p[i])
    failed = sum(p * n_dims < level for p in found.chi_square_p)
    lines = [
        (
            f"{found.decoder}, {found.checkpoint}: {n} images that the model drew, {found.draws} draws from q(z|x) each"
            f"{_caveat(found)}"
        ),
        f"not uniform           {failed} of {n_dims} latent dimensions (chi-square, {level:.0%} for all together)",
        f"p-value of all        {_p_value(found.p_value)}",
        f"{'least uniform':<22}{'p-value':>9} {'deviation':>10} {'mean':>7} {'spread':>7}",
    ]
    lines += [
        (
            f"{f'  z{i}':<22}{_p_value(found.chi_square_p[i]):>9} {found.deviation[i]:>10.4f} {found.mean[i]:>7.3f} "
            f"{found.spread[i]:>7.3f}"
        )
        for i in order[:5]
    ]
    lines += [
        f"{'  of uniform ranks':<42} {f'.500 ± {0.2887 / n**0.5:.3f}':>7} {f'1 ± {0.4472 / n**0.5:.3f}':>9}",
        f"picture               {picture}",
    ]
    return "\n".join(lines)


def _about(found: "AnnealedEvaluation | Evaluation | Gaps") -> str:
    """Say of which images a result is, and the caveat of its bound."""
    return f"{found.decoder}, {found.checkpoint}: {found.images}{_caveat(found)}"


def _caveat(found: "AnnealedEvaluation | Calibration | Evaluation | Gaps") -> str:
    return f" ({found.caveat})" if found.caveat else ""


def _p_value(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-16 else "< 1e-16"


def table(found: "Evaluation", latent_dim: int) -> str:
    """Format the metrics in lines, with their units and errors."""
    terms = f"{found.log_likelihood:.2f} - {found.kl:.2f}"
    lines = [
        _about(found),
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
    few = f", below 5 for {100 * low:.1f} % of {found.what}s" if low else ""
    bound = "" if found.is_known(metric) else "; A BOUND, NOT AN ESTIMATE"
    return (
        f"{title:<21} {value:.{digits}f} ± {error:.{digits}f} {unit} (Monte-Carlo error {mc_error:.{digits + 1}f}; "
        f"{size:.0f} of {found.k} {found.proposal} samples effective{few}{bound})"
    )
