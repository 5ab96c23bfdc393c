import numpy as np
import pytest
from PIL import Image

from vaecli.data.image_grid import BACKGROUND, grid, paired_grid, save_png


def test_a_grid_lays_images_out_in_rows():
    images = np.stack([np.full((2, 3), value, np.float32) for value in (0, 0.5, 1, 2, np.nan)])
    picture = grid(images, columns=3)
    assert picture.shape == (2 * 3 + 1, 3 * 4 + 1)
    assert picture[1, 1::4].tolist() == [0, 128, 255]
    assert picture[4, 1::4].tolist() == [255, 0, BACKGROUND]  # clipped, and nothing in the last place
    assert (picture[0] == BACKGROUND).all()
    assert grid(images).shape == (2 * 3 + 1, 3 * 4 + 1)  # the squarest


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
