import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vaecli
import vaecli.model.algorithms
import vaecli.runs.checkpoint
import vaecli.training.opening
from identical import traces
from vaecli.config.loading import override
from vaecli.config.sections import ObjectiveConfig, OptimizerConfig
from vaecli.data.dataset import Dataset
from vaecli.data.image_grid import MAX_SIDE
from vaecli.data.preprocess import Batch, Preprocess, build_preprocess
from vaecli.errors import (
    DataError,
    DivergedError,
    InterruptedRunError,
    LimitReachedError,
    ReproducibilityWarning,
    UsageError,
    VaecliError,
)  # fmt: skip
from vaecli.files import lock
from vaecli.model.objectives import Estimate, build_objective, kl_weight, log_evidence, n_samples
from vaecli.randomness import generator
from vaecli.runs.checkpoint import load_checkpoint, save_checkpoint
from vaecli.runs.run import EVENTS, LOCK, create_run, list_runs, load_run
from vaecli.training.loop import resume, train
from vaecli.training.opening import new_state
from vaecli.training.optimizers import learning_rate
from vaecli.training.step import EagerStep
from vaecli.training.stopping import Limit


def weights(run) -> dict[str, torch.Tensor]:
    return load_checkpoint(run.last).model


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def untimed(run) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in run.metrics]


def only_run(directory: Path):
    (path,) = directory.glob("*/*/")
    return load_run(path)


def test_a_seed_decides_every_bit_and_another_seed_changes_them(small, tmp_path):
    runs = [train(small(seed=seed), runs_dir=tmp_path) for seed in (0, 0, 1)]
    assert same(weights(runs[0]), weights(runs[1]))
    assert untimed(runs[0]) == untimed(runs[1])
    assert not same(weights(runs[0]), weights(runs[2]))


def test_training_leaves_the_global_generator_alone(small, tmp_path):
    before = torch.get_rng_state()
    train(small(), runs_dir=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_does_not_change_the_bits_of_training(tmp_path, images, small):
    """The same 45 training images, once with nine more for validation and once with none."""
    np.save(tmp_path / "more.npy", images[:54])
    np.save(tmp_path / "less.npy", images[:45])
    with_validation = small(data={"name": str(tmp_path / "more.npy"), "test": 0, "validation": 9})
    without = small(data={"name": str(tmp_path / "less.npy"), "test": 0, "validation": 0})
    one, two = train(with_validation, runs_dir=tmp_path), train(without, runs_dir=tmp_path)
    assert same(weights(one), weights(two))
    assert {row["split"] for row in two.metrics} == {"train"}
    assert not two.best.exists()
    assert two.checkpoint_path == two.last


def test_a_run_leaves_what_it_promises(small, tmp_path):
    seen = []
    run = train(small(), runs_dir=tmp_path, callback=seen.append)
    rows = run.metrics
    assert [(row["split"], row["epoch"]) for row in rows] == [
        (split, epoch) for epoch in (1, 2, 3) for split in ("train", "validation")
    ]
    assert [row["images"] for row in rows[::2]] == [45, 90, 135]
    assert [row["step"] for row in rows[::2]] == [5, 10, 15]
    for row in rows:
        assert row["elbo"] == pytest.approx(row["log_likelihood"] - row["kl"], abs=1e-4)
    assert rows[0]["loss"] == pytest.approx(-rows[0]["elbo"], abs=1e-4)
    status = run.status
    assert (status["state"], status["epoch"], status["decoder"], status["support"]) == (
        "completed", 3, "bernoulli", "binary",
    )  # fmt: skip
    best = max(rows[1::2], key=lambda row: row["elbo"])
    assert status["best"]["elbo"] == best["elbo"]
    assert load_checkpoint(run.best).progress.best_epoch == best["epoch"]
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["torch"] == torch.__version__ or torch.__version__.startswith(environment["torch"])
    for name in ("samples/prior.png", f"tensorboard/train/{EVENTS}", f"tensorboard/validation/{EVENTS}"):
        assert (run.path / name).stat().st_size > 0
    assert vaecli.load_config(run.path / "config.yaml") == run.config == small()
    assert [update.epoch for update in seen if update.ended] == [1, 2, 3]
    assert seen[-1].seconds_left == 0


def test_the_config_of_a_run_repeats_it(small, tmp_path):
    run = train(small(), runs_dir=tmp_path)
    again = train(vaecli.load_config(run.path / "config.yaml"), runs_dir=tmp_path)
    assert again.path.parent == run.path.parent
    assert same(weights(run), weights(again))


def test_overfitting_100_images_reaches_the_bound_of_100_equal_masses(tmp_path):
    """Σ p(x) ≤ 1 over 100 distinct images, six of each, so their mean log p(x) is at most -log 100 = -4.605 nats."""
    np.save(tmp_path / "x.npy", np.tile(np.tril(np.full((100, 100), 255, np.uint8)), (6, 1)).reshape(600, 10, 10))
    settings = [
        f"data.name={tmp_path / 'x.npy'}", "data.validation=0", "data.test=0", "data.binarize=threshold",
        "model.latent_dim=2", "model.hidden_dim=128", "optimizer.learning_rate=0.005",
        "training.batch_size=25", "training.epochs=100", "device=cpu",
    ]  # fmt: skip
    run = train(vaecli.load_config(None, settings), runs_dir=tmp_path)
    assert -6.5 < np.mean([row["elbo"] for row in run.metrics[-4:]]) < -math.log(100)
    x = torch.from_numpy(np.load(tmp_path / "x.npy")[:100]).flatten(1) / 255
    evidence = log_evidence(run.vae, Batch(x, x), 5000, generator(0, "evaluation")).mean().item()
    assert -6 < evidence < -math.log(100)


def test_patience_stops_a_run_as_converged(small, tmp_path):
    config = small(training={"epochs": 400, "patience": 3}, optimizer={"learning_rate": 0.05, "schedule": "constant"})
    run = train(config, runs_dir=tmp_path)
    assert run.status["state"] == "converged"
    assert run.status["epoch"] == run.status["best"]["epoch"] + 3 < 400
    assert load_checkpoint(run.best).progress.epoch == run.status["best"]["epoch"]


def test_a_finished_run_is_extended_as_if_it_had_been_longer(small, tmp_path):
    constant = {"schedule": "constant"}
    short = train(small(optimizer=constant), runs_dir=tmp_path)
    longer = resume(short, override(short.config, ["training.epochs=5"]))
    whole = train(small(optimizer=constant, training={"epochs": 5}), runs_dir=tmp_path)
    assert same(weights(longer), weights(whole))
    assert untimed(longer) == untimed(whole)
    assert longer.status["epochs"] == 5
    assert load_run(longer.path).config.training.epochs == 5


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_at_its_end_is_not_extended(small, tmp_path, schedule):
    run = train(small(optimizer={"schedule": schedule}), runs_dir=tmp_path)
    with pytest.raises(UsageError, match=f"{schedule} schedule ends at epoch 3.*--init-from"):
        resume(run, override(run.config, ["training.epochs=5"]))
    new = train(override(run.config, ["training.epochs=5"]), runs_dir=tmp_path, init_from=run)
    assert new.status["epoch"] == 5
    environment = json.loads((new.path / "environment.json").read_text())
    assert environment["initialised_from"] == str(run.best)


def test_weights_of_another_shape_are_no_start(small, tmp_path):
    run = train(small(), runs_dir=tmp_path)
    with pytest.raises(UsageError, match="the `model` sections must agree"):
        train(small(model={"latent_dim": 4}), runs_dir=tmp_path, init_from=run)


def test_a_run_is_resumed_as_what_it_was(small, tmp_path):
    run = train(small(), runs_dir=tmp_path)
    with pytest.raises(UsageError, match=r"only training.epochs, training.patience, device may change"):
        resume(run, override(run.config, ["seed=1"]))
    assert untimed(resume(run)) == untimed(run)  # a finished run is finished


def test_a_run_that_another_process_trains_is_left_alone(small, tmp_path):
    with pytest.raises(InterruptedRunError):
        train(small(), runs_dir=tmp_path, limit=Limit(images=20))
    run = only_run(tmp_path)
    with lock(run.path / LOCK), pytest.raises(VaecliError, match="is being trained by another process"):
        resume(run)
    assert not run.is_training
    assert resume(run).status["state"] == "completed"


def test_a_lost_status_is_told_again_from_the_metrics(small, tmp_path):
    run = train(small(optimizer={"schedule": "constant"}), runs_dir=tmp_path)
    before = run.status
    (run.path / "status.json").unlink()
    after = resume(run).status
    assert {**after, "updated": None} == {**before, "updated": None}


def test_a_run_goes_on_from_its_last_checkpoint_only(small, tmp_path):
    run = train(small(), runs_dir=tmp_path)
    with pytest.raises(UsageError, match="--init-from starts anew"):
        resume(load_run(run.best))


def test_a_converged_run_stays_converged(small, tmp_path):
    config = small(training={"epochs": 400, "patience": 3}, optimizer={"learning_rate": 0.05, "schedule": "constant"})
    run = train(config, runs_dir=tmp_path)
    rows = untimed(run)
    assert resume(run).status["state"] == "converged"
    assert untimed(run) == rows


def test_test_images_of_another_size_are_found_before_training(small, images, tmp_path):
    for folder, pixels in (("train", images), ("t10k", images[:, :4])):
        raw = tmp_path / "data" / "KMNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", np.zeros(60, np.uint8))):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (raw / f"{folder}-{kind}-ubyte").write_bytes(header + array.tobytes())
    with pytest.raises(DataError, match="its test images have 4 x 5 pixels, those for training 6 x 5"):
        train(small(data={"name": "kmnist"}), runs_dir=tmp_path / "runs", data_dir=tmp_path / "data")
    assert list_runs(tmp_path / "runs") == []


def test_other_data_under_the_same_name_are_refused(small, tmp_path, faces, images):
    with pytest.raises(InterruptedRunError):
        train(small(), runs_dir=tmp_path, limit=Limit(images=20))
    np.savez(faces, images=255 - images)
    with pytest.raises(VaecliError, match="is not the data that the run was trained on"):
        resume(only_run(tmp_path))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (
            {"optimizer": {"learning_rate": 1e30}},
            r"at step 2 \(epoch 1\): the log-likelihood of images (\d+, ){4}\d+ and 5 more of the training",
        ),
        (
            {"objective": {"kl_weight": 1e6, "L": 1}, "optimizer": {"learning_rate": 1e36}},
            r"smaller optimizer.learning_",
        ),
    ],
)
def test_a_diverged_run_names_step_and_term_and_keeps_its_last_good_checkpoint(small, tmp_path, settings, what):
    with pytest.raises(DivergedError, match=what) as caught:
        train(small(**settings), runs_dir=tmp_path)
    assert caught.value.exit_code == 4
    run = only_run(tmp_path)
    assert run.status["state"] == "diverged"
    assert str(caught.value) == run.status["reason"]
    assert all(value.isfinite().all() for value in run.vae.state_dict().values())


def test_a_diverged_run_names_the_image_that_did_it(small, tmp_path, monkeypatch):
    def spoilt(support, config, n_classes):
        def to_x(pixels, generator):
            x = build_preprocess(support, config)(pixels, generator)
            bad = (pixels == marked).all(1, keepdim=True)
            return Batch(x.input, x.target.masked_fill(bad, torch.nan))

        return Preprocess(to_x)

    config = small()
    marked = _train_images(config).pixels[17]
    monkeypatch.setattr(vaecli.training.opening, "build_preprocess", spoilt)
    order = torch.randperm(45, generator=generator(0, "permutation")).tolist()
    step = order.index(17) // 10 + 1
    with pytest.raises(
        DivergedError, match=rf"at step {step} \(epoch 1\): the log-likelihood of image 17 of the train"
    ):
        train(config, runs_dir=tmp_path)


def test_a_gradient_that_is_not_finite_is_named(small, tmp_path, monkeypatch):
    """√0 has the gradient 1/0: every term is finite, and what follows is not."""

    def rooted(config):
        inner = build_objective(config)

        def maximise(vae, batch, epsilon, weight):
            surrogate, elbo = inner(vae, batch, epsilon, weight)
            return Estimate(surrogate + (vae.decoder.network[0].weight.flatten()[0] * 0).sqrt(), elbo)

        return maximise

    monkeypatch.setattr(vaecli.model.algorithms, "build_objective", rooted)
    with pytest.raises(
        DivergedError, match=r"at step 1 \(epoch 1\): the gradient of decoder.network.0.weight is not fin"
    ):
        train(small(), runs_dir=tmp_path)


def test_a_run_stops_at_its_limit_of_images_and_goes_on_from_there(small, tmp_path):
    whole = train(small(), runs_dir=tmp_path / "whole")
    with pytest.raises(LimitReachedError, match="stopped after 60 images, at step 7, in epoch 2") as caught:
        train(small(), runs_dir=tmp_path / "cut", limit=Limit(images=60))
    assert caught.value.exit_code == 6
    cut = only_run(tmp_path / "cut")
    assert (cut.status["state"], cut.status["reason"]) == ("interrupted", str(caught.value))
    with pytest.raises(LimitReachedError, match="stopped after 40 images, at step 12, in epoch 3"):
        resume(cut, limit=Limit(images=40))  # epochs are of 10, 10, 10, 10 and 5
    resume(cut)
    assert same(weights(whole), weights(cut))
    assert untimed(whole) == untimed(cut)


def test_a_run_stops_at_its_limit_of_time(small, tmp_path):
    with pytest.raises(LimitReachedError, match=r"stopped after 0.2 s, at step \d+"):
        train(small(training={"epochs": 100_000}), runs_dir=tmp_path, limit=Limit(seconds=0.2))


def test_a_run_that_was_cut_before_its_first_checkpoint_starts_again(small, tmp_path):
    start = train(small(seed=5), runs_dir=tmp_path / "start")
    whole = train(small(), runs_dir=tmp_path / "whole", init_from=start)
    cut = create_run(small(), tmp_path / "cut", initialised_from=str(start.best))
    resume(cut)
    assert same(weights(whole), weights(cut))
    assert untimed(whole) == untimed(cut)
    cut.last.unlink()
    with pytest.raises(VaecliError, match="has no checkpoint to go on from"):
        resume(cut)  # it has metrics of epochs that would be lost


def test_other_conditions_are_said_to_change_the_bits(small, tmp_path):
    with pytest.raises(InterruptedRunError):
        train(small(), runs_dir=tmp_path, limit=Limit(images=20))
    run = only_run(tmp_path)
    there = load_checkpoint(run.last)
    save_checkpoint(run.last, replace(there, conditions=there.conditions | {"torch": "2.0"}, threads=1000))
    message = f"torch 2.0 before, {torch.__version__} now; 1000 threads, on"
    monkey = pytest.MonkeyPatch()
    monkey.setattr(torch, "set_num_threads", lambda n: None)
    with monkey.context(), pytest.warns(ReproducibilityWarning, match=re.escape(message)):
        resume(run)


def test_logs_that_were_shortened_by_hand_are_not_gone_on_with(small, tmp_path):
    with pytest.raises(InterruptedRunError):
        train(small(), runs_dir=tmp_path, limit=Limit(images=65))
    run = only_run(tmp_path)
    (run.path / "metrics.jsonl").write_text("")
    with pytest.raises(VaecliError, match="is shorter than when the checkpoint was written"):
        resume(run)
    assert load_checkpoint(run.last).progress.step == 7  # an epoch is of 10, 10, 10, 10 and 5


def test_a_model_larger_than_any_memory_is_refused_before_it_is_built(small, tmp_path):
    """100 layers of 65536: 2·99·65536² parameters and some, at 16 bytes each."""
    with pytest.raises(UsageError, match=r"8[45]\d,\d{3},\d{3},\d{3} parameters take 12,\d{3}\.\d GiB to train"):
        train(small(model={"hidden_dim": [65536] * 100}), runs_dir=tmp_path)
    assert not list(tmp_path.glob("small"))


def test_images_that_no_checkpoint_could_hold_are_refused_before_training(small, tmp_path):
    """The widest that can be trained on can be loaded."""
    config = small(data={"name": str(tmp_path / "wide.npy"), "validation": 1}, training={"epochs": 1})
    np.save(tmp_path / "wide.npy", np.zeros((5, 1, MAX_SIDE), np.uint8))
    assert load_run(train(config, runs_dir=tmp_path).path).checkpoint.image_shape == (1, 1, MAX_SIDE)
    np.save(tmp_path / "wide.npy", np.zeros((5, 1, MAX_SIDE + 1), np.uint8))
    with pytest.raises(
        DataError, match=r"wide\.npy: has images of 1 x 65537 pixels, and 65536 is the most along a side"
    ):
        train(config, runs_dir=tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_out_of_memory_says_what_to_make_smaller(small, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(EagerStep, "__call__", fail)
    with pytest.raises(VaecliError, match=r"out of memory; make training.batch_size"):
        train(small(), runs_dir=tmp_path)
    assert "out of memory" in only_run(tmp_path).status["reason"]


def test_an_unexpected_failure_is_written_down(small, tmp_path):
    def fail(update):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        train(small(), runs_dir=tmp_path, callback=fail)
    assert only_run(tmp_path).status["state"] == "failed"
    assert only_run(tmp_path).status["reason"] == "RuntimeError: out of luck"


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [2, 2, 2]), ("linear", [2, 1, 0.5]), ("cosine", [2, 1, 1 - math.sqrt(0.5)])],
)
def test_schedules(schedule, expected):
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule)
    # at 0, ½ and ¾ of the way: a cosine from 2 to 0 is 1 + cos(πt)
    assert [learning_rate(config, step, 100) for step in (0, 50, 75)] == pytest.approx(expected)


def test_the_stages_of_burda_et_al_are_each_three_times_as_long_and_slower():
    config = OptimizerConfig(learning_rate=1e-3, schedule="burda")
    # of 3,280 passes, those of stage i begin at (3^i - 1)/2: 0, 1, 4, 13, 40, 121, 364, 1093
    passes = [0, 1, 4, 13, 40, 121, 364, 1093]
    stages = [10 ** (-i / 7) * 1e-3 for i in range(8)]
    assert [learning_rate(config, p * 3000, 3280 * 3000) for p in passes] == pytest.approx(stages)
    ends = [p * 3000 - 1 for p in (*passes[1:], 3280)]
    assert [learning_rate(config, end, 3280 * 3000) for end in ends] == pytest.approx(stages)
    assert [learning_rate(config, step, 3280) for step in (0, 1, 4, 3279)] == pytest.approx(
        [stages[i] for i in (0, 1, 2, 7)]
    )


def test_kl_warmup_rises_from_zero_and_stays():
    config = ObjectiveConfig(kl_weight=0.5, kl_warmup=2)
    assert [kl_weight(config, step, 10) for step in (0, 5, 10, 20, 1000)] == pytest.approx([0, 0.125, 0.25, 0.5, 0.5])
    assert kl_weight(ObjectiveConfig(), 0, 10) == 1


def test_epochs_of_one_sample_come_before_those_of_all():
    config = ObjectiveConfig(L=5, L_warmup=2)
    assert [n_samples(config, step, 10) for step in (0, 10, 19, 20, 1000)] == [1, 1, 1, 5, 5]
    assert n_samples(ObjectiveConfig(L=5), 0, 10) == 5


@pytest.mark.parametrize("algorithm", ["aevb", "wake-sleep"])
def test_a_run_begins_as_one_of_one_sample_and_goes_on_with_all(small, tmp_path, algorithm):
    """Bit for bit, up to the first epoch after L_warmup; and what was cut in any epoch goes on to the same bits."""

    def config(**objective):
        return small(objective=objective, training={"epochs": 3, "algorithm": algorithm})

    one, both = (
        train(config(**objective), runs_dir=tmp_path / f"{objective['L']}").metrics
        for objective in ({"L": 1}, {"L": 4, "L_warmup": 2})
    )
    kept = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows] for rows in (one, both)]
    assert kept[0][:4] == kept[1][:4]  # training and validation, of two epochs
    assert kept[0][4] != kept[1][4]
    (uncut,) = list_runs(tmp_path / "4")
    for n_images in (60, 120):  # in the second epoch of 45, and in the third
        runs = tmp_path / str(n_images)
        with pytest.raises(LimitReachedError):
            train(config(L=4, L_warmup=2), runs_dir=runs, limit=Limit(images=n_images))
        (cut,) = list_runs(runs)
        assert traces(resume(cut)) == traces(uncut)


def test_weight_decay_is_the_map_gradient_on_the_mean_loss(small, tmp_path):
    """The first Adagrad step moves each parameter by lr · sign(g), where g has λθ added to it."""
    settings = {"name": "adagrad", "learning_rate": 0.01, "schedule": "constant", "weight_decay": 1e4}
    config = small(optimizer=settings, training={"epochs": 1, "batch_size": 45}, model={"init": "normal"})
    run = train(config, runs_dir=tmp_path)
    start = new_state(config, _train_images(config), torch.device("cpu")).vae.state_dict()
    for name, after in weights(run).items():
        theta = start[name]
        large = theta.abs() > 1e-3  # there λθ outweighs every gradient
        assert torch.allclose(after[large], (theta - 0.01 * theta.sign())[large], atol=2e-5), name


def _train_images(config):
    return Dataset(config.data, config.model.likelihood.support).train


def test_a_run_is_locked_before_its_checkpoint_is_read(small, tmp_path, monkeypatch):
    """Read earlier, it could be out of date: the process that held the lock may have trained on."""
    with pytest.raises(InterruptedRunError):
        train(small(), runs_dir=tmp_path, limit=Limit(images=20))
    run, locked = only_run(tmp_path), []

    def load(path):
        locked.append(run.is_training)
        return load_checkpoint(path)

    monkeypatch.setattr(vaecli.runs.checkpoint, "load_checkpoint", load)
    resume(run)
    assert locked == [True]
    assert not run.is_training


def test_a_refused_resumption_changes_nothing(small, tmp_path):
    run = train(small(optimizer={"schedule": "constant"}), runs_dir=tmp_path)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    longer = override(run.config, ["training.epochs=5"])
    with lock(run.path / LOCK), pytest.raises(VaecliError, match="is being trained by another process"):
        resume(run, longer)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
