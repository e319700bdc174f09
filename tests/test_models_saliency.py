import numpy as np
import pytest

from models.exported.saliency import CELLS, weigh_evidence


def sigmoid(score):
    return 1 / (1 + np.exp(-score))


@pytest.mark.parametrize("side", [32, 27])
def test_the_evidence_is_where_the_network_looks(side):
    """A network whose log-odds are the brightness of the top left quarter's corner, less that of the bottom right."""
    pixels = np.full((side, side, 3), 100, dtype=np.uint8)
    cell = side // CELLS
    pixels[:cell, :cell] = 200
    pixels[-cell:, -cell:] = 200
    sizes = []

    def predict(images):
        sizes.append(len(images))
        score = (images[:, :cell, :cell].mean((1, 2, 3)) - 0.5 * images[:, -cell:, -cell:].mean((1, 2, 3))) / 100
        return np.stack([1 - sigmoid(score), sigmoid(score)], axis=1).astype(np.float32)

    evidence = weigh_evidence(predict, pixels, 1)
    assert evidence.shape == (CELLS, CELLS)
    # Covered, a corner has the mean: 100 in all, and 100 more in two squares of `cell` pixels each way.
    mean = np.uint8(round(100 + 200 * cell**2 / side**2))
    assert evidence[0, 0] == pytest.approx((200 - mean) / 100, abs=0.01)
    assert evidence[-1, -1] == pytest.approx(-0.5 * (200 - mean) / 100, abs=0.01)
    assert np.abs(evidence[2:-2, 2:-2]).max() < 0.01
    # One for the image and 49 for its parts, never many at once.
    assert sizes == [1] + [7] * 7


def test_a_sure_network_has_evidence_too():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    evidence = weigh_evidence(lambda images: np.eye(2, dtype=np.float32)[np.zeros(len(images), int)], pixels, 0)
    assert np.isfinite(evidence).all()
    assert (evidence == 0).all()
