import numpy as np
import pytest
import torch

from vaecli.config.likelihoods import Support
from vaecli.config.sections import DataConfig
from vaecli.data.dataset import Dataset
from vaecli.data.summaries import mean_image
from vaecli.errors import DataError


def dataset(name, **settings) -> Dataset:
    return Dataset(DataConfig(name=str(name), **settings), Support.BINARY)


def test_mnist_has_its_images_its_labels_and_its_splits():
    mnist = dataset("mnist")
    assert (len(mnist.train), len(mnist.validation), len(mnist.test)) == (50_000, 10_000, 10_000)
    assert (mnist.train.shape, mnist.train.pixels.dtype) == ((1, 28, 28), torch.uint8)
    # the first labels of the two files, and the mean grey level 33.3184 of the training file (0.1307 of 255)
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    both = torch.cat([mnist.train.pixels, mnist.validation.pixels])
    assert both.double().mean().item() == pytest.approx(33.3184, abs=1e-4)
    # 81 % of the test pixels are exactly 0
    assert (mnist.test.pixels == 0).double().mean().item() == pytest.approx(0.81, abs=0.005)


def test_own_images_split_in_order(faces, images):
    own = dataset(faces)
    assert (len(own.train), len(own.validation), len(own.test)) == (45, 9, 6)  # a tenth, then a sixth of the rest
    parts = torch.cat([own.train.pixels, own.validation.pixels, own.test.pixels])
    assert torch.equal(parts, torch.from_numpy(images).flatten(1))
    assert own.test.labels.tolist() == [4, 0, 1, 2, 3, 4]


def test_a_random_order_keeps_images_and_labels_together_and_is_always_the_same(faces, images):
    one, two = dataset(faces, shuffle=True), dataset(faces, shuffle=True, train=7)
    parts = [one.train, one.validation, one.test]
    assert [len(part) for part in parts] == [45, 9, 6]
    rows = [images.reshape(60, -1).tolist().index(x) for part in parts for x in part.pixels.tolist()]
    assert sorted(rows) == list(range(60))
    assert len({*rows[-6:]} & {*range(54, 60)}) < 6  # the last six of the file, but for one order in 50 million
    assert torch.cat([part.labels for part in parts]).tolist() == [row % 5 for row in rows]
    assert torch.equal(two.train.pixels, one.train.pixels[:7])
    assert torch.equal(two.test.pixels, one.test.pixels)


def test_vectors_in_a_random_order_are_standardised_by_those_that_are_trained_on(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(60.0)[:, None])
    own = dataset(tmp_path / "x.npy", kind="vectors", shuffle=True)
    # z = (x - mean) / deviation over the 45 that are trained on, whichever they are
    assert own.train.pixels.mean().item() == pytest.approx(0, abs=1e-6)
    assert own.train.pixels.std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_a_random_order_of_mnist_leaves_its_test_images():
    mnist, plain = dataset("mnist", shuffle=True, train=5), dataset("mnist")
    assert torch.equal(mnist.test.pixels, plain.test.pixels)
    assert not torch.equal(mnist.validation.pixels, plain.validation.pixels)


def test_a_random_order_that_does_not_fit_into_memory_is_refused(faces, monkeypatch):
    monkeypatch.setattr("vaecli.data.dataset.process_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"45 images in a random order take .* GiB.*leave out data\.shuffle"):
        _ = dataset(faces, shuffle=True).train


def test_splits_of_chosen_sizes(faces):
    own = dataset(faces, validation=0, test=20)
    assert (len(own.train), len(own.validation), len(own.test)) == (40, 0, 20)


@pytest.mark.parametrize(
    ("settings", "what"), [({"test": 60}, "data.test: 60"), ({"validation": 54}, "data.validation: 54")]
)
def test_splits_that_leave_nothing(faces, settings, what):
    with pytest.raises(DataError, match=what):
        _ = dataset(faces, **settings).train


def test_training_on_the_first_images_leaves_the_others_where_they_are(faces, images):
    few, all_of_them = dataset(faces, train=7), dataset(faces)
    assert torch.equal(few.train.pixels, torch.from_numpy(images[:7]).flatten(1))
    assert few.train.labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert torch.equal(few.validation.pixels, all_of_them.validation.pixels)
    assert torch.equal(few.test.pixels, all_of_them.test.pixels)
    assert len(dataset(faces, train=45).train) == 45
    with pytest.raises(DataError, match=r"has 45 images to train on; data\.train: 46 is more"):
        _ = dataset(faces, train=46).train


def test_the_mean_image_is_in_units_of_the_pixel(faces, images):
    mean = mean_image(dataset(faces).train.pixels.numpy())
    assert mean == pytest.approx(images[:45].reshape(45, -1).mean(0) / 255, abs=1e-6)


def test_static_binarisation_is_one_draw_for_ever(faces, images):
    one, two = (dataset(faces, binarize="static") for _ in range(2))
    assert torch.equal(one.train.pixels, two.train.pixels)
    assert set(one.train.pixels.unique().tolist()) == {0, 255}
    assert not torch.equal(one.train.pixels, dataset(faces, binarize="threshold").train.pixels)
    p = images[:45].reshape(45, -1) / 255
    error = np.sqrt((p * (1 - p)).sum()) / p.size
    assert abs(one.train.pixels.double().mean() / 255 - p.mean()) < 5 * error
    grey = Dataset(DataConfig(name=str(faces), binarize="static"), Support.UNIT_INTERVAL)
    assert len(grey.train.pixels.unique()) > 2
