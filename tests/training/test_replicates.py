"""Runs trained as one program: each as if alone, to the order of float32 sums, whatever befalls the others."""

from dataclasses import replace

import pytest
import torch

from identical import traces
from vaecli.config.jobs import EvaluationSpec, Resources
from vaecli.devices import REPLICATES
from vaecli.errors import DivergedError, InterruptedRunError, LimitReachedError, ReproducibilityWarning, VaecliError
from vaecli.runs.checkpoint import load_checkpoint
from vaecli.runs.run import list_runs
from vaecli.sweeps import local
from vaecli.sweeps.execution import run_configs
from vaecli.sweeps.jobs import run_jobs
from vaecli.sweeps.sweep import Job, JobOptions, plan_jobs
from vaecli.training.accelerate import VmappedStep
from vaecli.training.loop import resume, train
from vaecli.training.opening import resume_session, start_session
from vaecli.training.optimizers import Optimizer
from vaecli.training.replicates import train_replicates
from vaecli.training.session import Controls
from vaecli.training.stopping import Limit

SEEDS = (0, 1, 5)
QUICK = EvaluationSpec(k=2, binarised=False)


@pytest.fixture
def seeds(small):
    """One config with several seeds."""
    return lambda **settings: [small(**settings, seed=seed) for seed in SEEDS]


def close(one, other) -> None:
    """45 steps at most, of 2e-3 each, whose gradients differ by some 1e-7 of themselves."""
    torch.testing.assert_close(load_checkpoint(one.last).model, load_checkpoint(other.last).model, rtol=0, atol=1e-4)
    for mine, theirs in zip(one.metrics, other.metrics, strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["elbo"] == pytest.approx(theirs["elbo"], abs=1e-3)


@pytest.mark.parametrize("settings", [{}, {"model": {"decoder": "gaussian"}, "optimizer": {"name": "adagrad"}}])
def test_each_run_is_what_it_is_alone(seeds, tmp_path, settings):
    sessions = dict(
        enumerate(start_session(config, tmp_path / "together", None, Controls()) for config in seeds(**settings))
    )
    assert train_replicates(sessions) == {}
    for config, session in zip(seeds(**settings), sessions.values(), strict=True):
        alone = train(config, runs_dir=tmp_path / "alone")
        close(session.run, alone)
        assert session.run.status["state"] == "completed"
        assert load_checkpoint(session.run.last).conditions[REPLICATES] == "3"
        assert load_checkpoint(alone.last).conditions[REPLICATES] == "1"


def test_runs_that_are_stopped_go_on_together_to_the_same_bits(seeds, tmp_path):
    uncut = {i: start_session(config, tmp_path / "uncut", None, Controls()) for i, config in enumerate(seeds())}
    train_replicates(uncut)
    cut = {i: start_session(c, tmp_path / "cut", None, Controls(limit=Limit(images=75))) for i, c in enumerate(seeds())}
    assert {type(error) for error in train_replicates(cut).values()} == {LimitReachedError}
    rest = {i: resume_session(session.run, None, None, Controls(), replicates=3) for i, session in cut.items()}
    assert train_replicates(rest) == {}
    for i, session in uncut.items():
        assert traces(rest[i].run) == traces(session.run)


def test_a_run_that_goes_on_alone_says_that_its_bits_may_be_others(seeds, tmp_path):
    cut = {i: start_session(c, tmp_path / "cut", None, Controls(limit=Limit(images=75))) for i, c in enumerate(seeds())}
    train_replicates(cut)
    with pytest.warns(ReproducibilityWarning, match="replicates 3 before, 1 now"):
        rest = resume(cut[0].run)
    close(rest, train(seeds()[0], runs_dir=tmp_path / "alone"))


def test_runs_at_different_steps_go_on_side_by_side(seeds, tmp_path):
    """Of three the second has made 3 steps of its 15 before."""
    first, second, third = seeds()
    limit = Limit(images=30)
    with pytest.raises(LimitReachedError):
        train(second, runs_dir=tmp_path / "together", limit=limit)
    (cut,) = list_runs(tmp_path / "together")
    sessions = {
        0: start_session(first, tmp_path / "together", None, Controls()),
        1: resume_session(cut, None, None, Controls()),
    }
    sessions[2] = start_session(third, tmp_path / "together", None, Controls())
    assert train_replicates(sessions) == {}
    assert [session.state.replicates for session in sessions.values()] == [3, 3, 3]  # those behind have caught up
    for config, session in zip(seeds(), sessions.values(), strict=True):
        close(session.run, train(config, runs_dir=tmp_path / "alone"))


def test_a_run_that_diverges_leaves_the_others(seeds, tmp_path):
    """The second loses its weights at the end of its first epoch."""
    sessions = {}

    def spoil(update):
        if update.ended and update.epoch == 1:
            with torch.no_grad():
                next(sessions[1].state.vae.parameters()).fill_(float("nan"))

    for i, config in enumerate(seeds()):
        sessions[i] = start_session(config, tmp_path / "together", None, Controls(spoil) if i == 1 else Controls())
    failed = train_replicates(sessions)
    assert failed.keys() == {1}
    assert isinstance(failed[1], DivergedError)
    assert "at step 6" in str(failed[1])
    assert sessions[1].run.status["state"] == "diverged"
    for i in (0, 2):
        close(sessions[i].run, train(seeds()[i], runs_dir=tmp_path / "alone"))


@pytest.mark.parametrize("where", [(Optimizer, "stack"), (VmappedStep, "__call__")])
def test_out_of_memory_is_every_runs_failure_and_names_the_remedy(seeds, tmp_path, monkeypatch, where):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(*where, fail)
    failed = train_replicates(
        {i: start_session(config, tmp_path, None, Controls()) for i, config in enumerate(seeds())}
    )
    (message,) = {str(error) for error in failed.values()}
    assert message.endswith("objective.L or model.hidden_dim, or resources.replicates, which is 3 here, smaller")
    assert {run.status["state"] for run in list_runs(tmp_path)} == {"failed"}


def test_one_that_cannot_begin_and_one_that_is_done_leave_the_others(seeds, tmp_path):
    configs = [*seeds(), seeds()[0].model_copy(update={"seed": 9, "device": "cuda:77"})]
    done = train(configs[0], runs_dir=tmp_path)
    results = run_jobs(plan_jobs(configs, JobOptions(tmp_path, evaluation=QUICK)))
    assert [result.error is None for result in results] == [True, True, True, False]
    assert "cuda:77 is not there" in results[3].error
    assert results[0].run.path == done.path
    assert [result.run.status["state"] for result in results[:3]] == ["completed"] * 3


def test_a_stop_ends_all_of_them(seeds, tmp_path):
    polls = iter(range(10**9))
    planned = plan_jobs(seeds(training={"epochs": 300}), JobOptions(tmp_path, evaluation=QUICK))
    with pytest.raises(InterruptedRunError):
        run_jobs(planned, lambda: next(polls) > 40)
    assert [run.status["state"] for run in list_runs(tmp_path)] == ["interrupted"] * 3


@pytest.mark.parametrize(
    ("at_most", "jobs", "groups"),
    [
        (16, 1, [(0, 1, 2, 4, 5), (3,), (6,), (7,)]),
        (2, 1, [(0, 1), (2, 4), (3,), (5,), (6,), (7,)]),
        (16, 2, [(0, 1, 2, 4), (3,), (5,), (6,), (7,)]),
        (16, 4, [(0, 1), (2, 4), (3,), (5,), (6,), (7,)]),
        (1, 1, [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,)]),
    ],
)
def test_on_cuda_the_seeds_of_a_config_are_trained_together(small, monkeypatch, tmp_path, at_most, jobs, groups):
    config = small(device="auto")
    configs = [config.model_copy(update={"seed": seed}) for seed in range(6)]
    configs[3] = small(device="auto", seed=3, model={"latent_dim": 2})
    configs += [small(seed=6), small(seed=7)]  # on the CPU
    planned = {i: Job(config, None, JobOptions(tmp_path)) for i, config in enumerate(configs)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert local.group_replicates(planned, at_most, jobs) == groups


def test_where_there_is_no_such_device_every_run_says_so_for_itself(small, tmp_path):
    planned = {i: Job(small(device="cuda:77", seed=i), None, JobOptions(tmp_path)) for i in range(2)}
    assert local.group_replicates(planned, 16, 1) == [(0,), (1,)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_many_runs_go_in_groups_to_the_same_ends(small, tmp_path, monkeypatch, jobs):
    configs = [small(seed=seed, training={"epochs": 2}) for seed in range(5)]
    work = JobOptions(tmp_path / "alone", evaluation=QUICK)
    alone = run_configs(configs, work)
    monkeypatch.setattr(local, "_is_cuda", lambda device: True)
    together = run_configs(
        configs, replace(work, runs_dir=tmp_path / "together"), jobs=jobs, resources=Resources(replicates=3)
    )
    assert [result.seed for result in together] == list(range(5))
    for one, other in zip(alone, together, strict=True):
        assert other.error is None
        assert other.metric("elbo") == pytest.approx(one.metric("elbo"), abs=1e-3)
        assert load_checkpoint(other.run.last).conditions[REPLICATES] == ("2" if one.seed > 2 else "3")


def test_an_error_of_any_kind_is_told_in_words(seeds, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "vaecli.training.opening.start_session", lambda *arguments, **more: (_ for _ in ()).throw(VaecliError("no"))
    )
    results = run_jobs(plan_jobs(seeds(), JobOptions(tmp_path, evaluation=QUICK)))
    assert [result.error for result in results] == ["no"] * 3


def test_a_session_that_cannot_begin_leaves_the_others(seeds, tmp_path):
    """The logs of the first run were shortened by hand."""
    first, second, _ = seeds()
    with pytest.raises(LimitReachedError):
        train(first, runs_dir=tmp_path, limit=Limit(images=60))
    (cut,) = list_runs(tmp_path)
    (cut.path / "metrics.jsonl").write_text("")
    sessions = {0: resume_session(cut, None, None, Controls()), 1: start_session(second, tmp_path, None, Controls())}
    failed = train_replicates(sessions)
    assert failed.keys() == {0}
    assert "is shorter than when the checkpoint was written" in str(failed[0])
    assert sessions[1].run.status["state"] == "completed"
    assert not cut.is_training


def test_an_interruption_of_the_process_releases_every_run(seeds, tmp_path):
    sessions = {i: start_session(config, tmp_path, None, Controls()) for i, config in enumerate(seeds())}

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_replicates(sessions, interrupt)
    assert [run.is_training for run in list_runs(tmp_path)] == [False] * 3
    for config, session in zip(seeds(), sessions.values(), strict=True):
        close(resume(session.run), train(config, runs_dir=tmp_path / "alone"))
