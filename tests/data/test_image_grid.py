import numpy as np
import pytest
from PIL import Image

from vaecli.data.image_grid import BACKGROUND, Labels, grid, paired_grid, save_png


def test_a_grid_lays_images_out_in_rows():
    images = np.stack([np.full((2, 3), value, np.float32) for value in (0, 0.5, 1, 2, np.nan)])
    picture = grid(images, columns=3)
    assert picture.shape == (2 * 3 + 1, 3 * 4 + 1)
    assert picture[1, 1::4].tolist() == [0, 128, 255]
    assert picture[4, 1::4].tolist() == [255, 0, BACKGROUND]  # clipped, and nothing in the last place
    assert (picture[0] == BACKGROUND).all()
    assert grid(images).shape == (2 * 3 + 1, 3 * 4 + 1)  # the squarest


def test_a_grid_of_colours_is_in_colour():
    red, blue = np.array([1, 0, 0], np.float32), np.array([0, 0, 2], np.float32)
    picture = grid(np.stack([red, blue]).reshape(2, 1, 1, 3), columns=2)
    assert picture.shape == (3, 5, 3)
    assert picture[1, 1::2].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert (picture[0] == BACKGROUND).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_are_no_colours_stand_side_by_side(channels):
    image = np.arange(2 * 3 * channels, dtype=np.float32).reshape(1, 2, 3, channels) / 255
    picture = grid(image, gap=0)
    assert picture.tolist() == [
        [row * 3 * channels + column * channels + channel for channel in range(channels) for column in range(3)]
        for row in range(2)
    ]


def test_pairs_stand_one_above_the_other():
    above = np.zeros((3, 1, 1), np.float32)
    picture = paired_grid(above, above + 1, columns=2)
    assert picture[1::2, 1::2].tolist() == [[0, 0], [255, 255], [0, BACKGROUND], [255, BACKGROUND]]


@pytest.mark.parametrize("scale", [1, 3])
def test_a_picture_is_saved_enlarged(tmp_path, scale):
    picture = np.array([[0, 255]], np.uint8)
    save_png(tmp_path / "x.png", picture, scale)
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (2 * scale, scale)
        assert np.asarray(image)[0].tolist() == [0] * scale + [255] * scale


@pytest.mark.parametrize(
    ("shape", "scale"), [((28, 56), 2), ((1, 2), 48), ((3, 200), 7), ((200, 3), 32), ((28, 56, 3), 2)]
)
def test_labels_stand_around_a_picture_and_leave_it_as_it_is(tmp_path, shape, scale):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    save_png(tmp_path / "x.png", picture, labels=Labels(["0 %", "100 %"], ["from image 7"], ["to image 9"]))
    with Image.open(tmp_path / "x.png") as image:
        pixels = np.asarray(image)
    enlarged = picture.repeat(scale, 0).repeat(scale, 1)  # until the letters fit: 48 pixels a column, 20 a row
    height, width = enlarged.shape[:2]
    above, beside = pixels.shape[0] - height, pixels.shape[1] - width
    (left,) = (x for x in range(beside + 1) if np.array_equal(pixels[above:, x : x + width], enlarged))
    for margin in (pixels[:above], pixels[:, :left], pixels[:, left + width :]):
        assert (margin.min() < 64, margin.max()) == (True, 255)  # dark letters on white


def test_labels_that_would_touch_are_written_now_and_then(tmp_path):
    picture = np.full((20, 1000), 128, np.uint8)
    for n in (10, 1000):
        save_png(tmp_path / f"{n}.png", picture, labels=Labels([f"{i:03}" for i in range(n)]))
    with Image.open(tmp_path / "10.png") as few, Image.open(tmp_path / "1000.png") as many:
        above = [np.asarray(image)[:25] for image in (few, many)]
        gaps = [int((row == 255).all(0).mean() * 100) for row in above]
    assert gaps[0] > 80
    assert gaps[1] > 10  # percent of the columns of pixels have no ink
