import hashlib
import json
import os

import numpy as np
import pytest

from vaecli.data import summaries
from vaecli.data.summaries import fingerprint, mean_image, sha256_of_images
from vaecli.errors import InterruptedRunError


@pytest.fixture
def array(tmp_path, images, monkeypatch):
    """An array of which everything is kept, as of a large one; how often it is read is counted."""
    monkeypatch.setattr(summaries, "LARGE", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "own.npy"
    np.save(path, images)
    os.utime(path, (1e9, 1e9))
    return path


@pytest.fixture
def stages():
    seen: list[str] = []
    return seen, lambda stage, done, total: seen.append(stage) if done == total else None


def test_a_large_files_checksums_and_mean_are_computed_once(array, images, stages):
    seen, on_stage = stages
    pixels = images.reshape(60, -1)
    origin = (array, "images 0 to 60")
    for _ in range(2):
        assert fingerprint(str(array), on_stage) == hashlib.sha256(array.read_bytes()).hexdigest()
        assert sha256_of_images(pixels, origin, on_stage) == hashlib.sha256(images.tobytes()).hexdigest()
        expected = (images.sum(0, dtype=np.uint64).ravel() / (255 * 60)).astype(np.float32)
        assert np.array_equal(mean_image(pixels, origin, on_stage), expected)
    assert seen == [
        "computing the checksum of own.npy",
        "computing the checksum of the training images",
        "computing the mean image",
    ]
    assert sha256_of_images(pixels[:9], (array, "images 0 to 9")) == hashlib.sha256(images[:9].tobytes()).hexdigest()


@pytest.mark.parametrize("change", ["content", "time", "inode"])
def test_what_is_known_of_a_file_that_has_changed_is_not_trusted(array, images, stages, change):
    seen, on_stage = stages
    fingerprint(str(array), on_stage)
    content, when = array.read_bytes(), 1e9
    if change == "time":
        when = 2e9 - 1e9 / 2
    elif change == "inode":
        array.rename(array.with_name("old.npy"))
    else:
        content += b"\0"
    array.write_bytes(content)
    os.utime(array, (when, when))
    assert fingerprint(str(array), on_stage) == hashlib.sha256(content).hexdigest()
    assert len(seen) == 2


def test_a_file_that_has_just_changed_is_read_again(array, stages):
    seen, on_stage = stages
    os.utime(array)
    for _ in range(2):
        fingerprint(str(array), on_stage)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: "",
        lambda kept: "{",
        lambda kept: "[" * 100_000,
        lambda kept: "[1]",
        lambda kept: json.dumps(kept | {"value": "0" * 63}),
        lambda kept: json.dumps(kept | {"value": [0]}),
        lambda kept: json.dumps(kept | {"value": None}),
        lambda kept: json.dumps({"value": "0" * 64}),
        lambda kept: json.dumps(kept | {"size": "x"}),
        lambda kept: "\udcff",
    ],
)
def test_a_damaged_cache_is_as_good_as_none(array, tmp_path, stages, damage):
    seen, on_stage = stages
    expected = fingerprint(str(array), on_stage)
    (kept,) = tmp_path.glob("cache/vaecli/images/*.json")
    kept.write_bytes(damage(json.loads(kept.read_text())).encode(errors="surrogateescape"))
    assert fingerprint(str(array), on_stage) == expected
    assert len(seen) == 2
    assert fingerprint(str(array), on_stage) == expected
    assert len(seen) == 2  # and it is mended


def test_a_cache_that_cannot_be_written_is_as_good_as_none(array, tmp_path):
    (tmp_path / "cache").touch()
    assert fingerprint(str(array)) == hashlib.sha256(array.read_bytes()).hexdigest()


def test_a_mean_of_many_images_is_that_of_blocks_evenly_spaced(monkeypatch):
    monkeypatch.setattr(summaries, "AVERAGED", 20)
    monkeypatch.setattr(summaries, "BLOCKS", 5)
    pixels = np.random.default_rng(0).integers(0, 256, (101, 7), np.uint8)
    rows = [start + i for start in (0, 24, 48, 72, 97) for i in range(4)]  # blocks of 4, from the first to the last
    assert mean_image(pixels) == pytest.approx(pixels[rows].mean(0) / 255, rel=1e-6)
    assert mean_image(pixels[:20]) == pytest.approx(pixels[:20].mean(0) / 255, rel=1e-6)  # as few as that: all


def test_what_stops_it_leaves_nothing_behind(array, tmp_path):
    def on_stage(stage, done, total):
        raise InterruptedRunError(stage)

    with pytest.raises(InterruptedRunError, match=r"the checksum of own\.npy"):
        fingerprint(str(array), on_stage)
    assert not (tmp_path / "cache").exists()
