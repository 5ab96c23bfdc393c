import pytest

from vaecli.training.forecast import forecast
from vaecli.training.loop import train
from vaecli.training.state import TrainingState


@pytest.mark.parametrize("validation", [9, 0])
def test_it_is_what_the_run_then_takes(small, tmp_path, monkeypatch, validation):
    monkeypatch.chdir(tmp_path)
    config = small(data={"validation": validation}, training={"epochs": 4})
    before = sorted(tmp_path.rglob("*"))
    found = forecast(config)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written
    run = train(config, runs_dir=tmp_path / "runs")
    assert found.steps == run.metrics[-1]["step"] == 4 * found.steps_per_epoch
    assert found.images == 54 - validation
    sizes = [sum(p.numel() for p in part.parameters()) for part in (run.vae.encoder, run.vae.decoder)]
    assert [found.encoder_parameters, found.decoder_parameters] == sizes
    assert found.checkpoint_bytes == pytest.approx(run.last.stat().st_size, rel=0.25)
    assert found.timed_steps <= found.steps_per_epoch
    assert found.seconds >= found.steps * found.seconds_per_step > 0


def test_steps_of_one_sample_and_of_all_are_timed_each(small, monkeypatch):
    """By a clock on which a step takes a second for each sample: one epoch of 1 and three of 5 make 4 s a step."""
    now = [0.0]
    draw = TrainingState.draw

    def timed(state, pixels):
        now[0] += state.n_samples
        return draw(state, pixels)

    monkeypatch.setattr(TrainingState, "draw", timed)
    monkeypatch.setattr("vaecli.training.forecast.time.perf_counter", lambda: now[0])
    found = forecast(small(objective={"L": 5, "L_warmup": 1}, training={"epochs": 4}))
    assert found.seconds_per_step == 4
    assert found.seconds == 4 * found.steps


def test_an_epoch_of_one_step_is_timed_too(small):
    assert forecast(small(training={"batch_size": 100})).timed_steps == 1
