"""Settings that have no effect beside others: they are noted, so that one base config serves every choice."""

from vaecli.config.likelihoods import Support
from vaecli.config.schema import Config
from vaecli.config.sections import FLOWS


def unused_settings(config: Config) -> dict[str, str]:
    """Return the keys without effect under this config, each with the reason."""
    model, algorithm, device = config.model, config.training.algorithm, f"device is {config.device}"
    support, on_cpu = config.support, config.device in {"auto", "cpu"}
    no_closed_form = f"with a {model.posterior} posterior and a {model.prior} prior the KL has no closed form"
    rules = (
        (("data.binarize",), support is not Support.BINARY, f"{model.decoder} is not a binary likelihood"),
        (("data.dequantize",), support is not Support.UNIT_INTERVAL, f"{model.decoder} is not a density"),
        (("data.binarize", "data.dequantize"), support is Support.REAL, "vectors have no pixels"),
        (("model.classes",), model.condition == "none", "the model is not told the class"),
        *(
            ((f"model.{name}",), name not in model.likelihood.settings, f"{model.decoder} does not have it")
            for name in ("mean", "min_log_sigma", "sigma")
        ),
        (("model.min_log_sigma",), model.fixes_scale, f"model.sigma is {model.sigma}"),
        (
            ("model.activation", "model.normalization"),
            model.network == "mlp" and not model.hidden_dim,
            "there is no hidden layer",
        ),
        (("model.prior_components",), model.prior == "standard", "the standard prior has only one"),
        (("objective.estimator",), model.prior != "standard" or model.posterior in FLOWS, no_closed_form),
        (("objective.L_warmup",), config.objective.L == 1, "L is 1"),
        (("objective.L",), config.objective.L_warmup >= config.training.epochs, "L_warmup lasts for all epochs"),
        (("objective.estimator",), config.objective.name != "elbo", f"{config.objective.name} has only one"),
        (
            ("objective.estimator", "objective.kl_weight", "objective.kl_warmup"),
            algorithm != "aevb",
            f"{algorithm} does not follow the gradient of the ELBO",
        ),
        (("training.cuda_graph",), algorithm == "mcem", "the chains of mcem are those of single images"),
        (("training.cuda_graph",), model.condition != "none", "the labels of minibatches are gathered one by one"),
        (("training.compile",), not on_cpu and config.training.compile != "off", device),
        (("training.products",), not on_cpu, device),
        (("training.cuda_graph", "training.tf32"), config.device in {"cpu", "mps"}, device),
    )
    return {key: reason for keys, is_unused, reason in rules if is_unused for key in keys}
