import pytest

from vaecli.training.forecast import forecast
from vaecli.training.loop import train


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


def test_an_epoch_of_one_step_is_timed_too(small):
    assert forecast(small(training={"batch_size": 100})).timed_steps == 1
