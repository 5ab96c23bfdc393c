"""Networks, activations and decoders go together: each trains, resumes to the same bits, evaluates and samples."""

from itertools import cycle, product

import numpy as np
import pytest

from identical import traces
from vaecli.config.likelihoods import LIKELIHOODS
from vaecli.errors import LimitReachedError
from vaecli.evaluation.evaluate import evaluate
from vaecli.evaluation.generation import manifold, sample
from vaecli.runs.run import list_runs
from vaecli.training.loop import resume, train
from vaecli.training.stopping import Limit

MODELS = product(["mlp"], ["relu", "gated"])


@pytest.mark.parametrize(("model", "decoder"), list(zip(MODELS, cycle(LIKELIHOODS), strict=False)))
def test_any_network_trains_resumes_evaluates_and_samples(small, tmp_path, model, decoder):
    network, activation = model
    settings = {"network": network, "activation": activation, "decoder": decoder}
    config = small(model={"latent_dim": 2, **settings}, training={"epochs": 2})
    uncut = train(config, runs_dir=tmp_path / "uncut")
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "cut", limit=Limit(images=70))  # in the middle of the second epoch
    (cut,) = list_runs(tmp_path / "cut")
    assert traces(resume(cut)) == traces(uncut)
    found = evaluate(uncut, k=20, limit=3)
    assert found.log_evidence >= found.elbo - 5 * found.log_evidence_mc_se - 0.5
    assert np.isfinite(sample(uncut, 3, draw=True)).all()
    assert manifold(uncut, 2).shape == (4, 6, 5)
