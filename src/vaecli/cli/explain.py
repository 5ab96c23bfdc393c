"""`vae explain`: which likelihood and which KL weight another program's loss amounts to."""

from typing import Annotated, Literal

import typer

from vaecli.cli.app import Json, app, examples, result

Loss = Literal["mse-mean", "mse-sum", "bce-mean", "bce-sum"]  # vaecli.config.other_losses', which help does not need


@app.command(
    epilog=examples(
        "vae explain --loss mse-mean --kl-weight 0.00025 --pixels 784",
        "vae explain --loss bce-sum --kl-weight 4 --pixels 784 > mine.yaml",
        "vae explain --loss mse-mean --kl-weight 1 --pixels 12288 --kl-mean-over 128",
    )
)
def explain(
    loss: Annotated[
        Loss, typer.Option("--loss", help="Squared error or cross-entropy, averaged over an image's pixels or summed.")
    ],
    kl_weight: Annotated[float, typer.Option("--kl-weight", help="What the KL term is multiplied by there.")],
    pixels: Annotated[int, typer.Option("--pixels", min=1, help="Numbers of an image: pixels times channels.")],
    kl_mean_over: Annotated[
        int,
        typer.Option("--kl-mean-over", metavar="Z", min=1, help="Where the KL is a mean over latent dimensions: Z."),
    ] = 1,
    as_json: Json = False,
) -> None:
    """Say which likelihood and which KL weight another program's loss amounts to, as a config that does the same."""
    import yaml

    from vaecli.config.other_losses import equivalent

    found = equivalent(loss, kl_weight, pixels, kl_mean_over)
    if as_json:
        shown = {"decoder": found.decoder, "sigma": found.sigma, "kl_weight": found.kl_weight, "factor": found.factor}
        result(shown | {"config": found.settings})
        return
    if found.sigma is None:
        likelihood = "a Bernoulli with mean x̂; grey pixels in it are relaxed, not a likelihood"
    else:
        likelihood = f"N(x; x̂, σ² I) with σ² = {found.sigma**2:.6g}, σ = {found.sigma:.6g}"
    mean = f", a mean over {kl_mean_over} latent dimensions" if kl_mean_over > 1 else ""
    lines = [
        f"{loss} over {pixels:,} pixels + {kl_weight:g} KL{mean}",
        f"  p(x|z)     {likelihood}",
        f"  KL weight  {found.kl_weight:.6g}",
        f"  that loss  {found.factor:.6g} (-log p(x|z) + {found.kl_weight:.6g} KL) + constant",
    ]
    result("\n".join(f"# {line}" for line in lines))
    result(yaml.safe_dump(found.settings, sort_keys=False).rstrip("\n"))
