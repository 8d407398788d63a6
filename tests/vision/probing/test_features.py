from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mce_llm.vision.data import ViewBatch, eval_view, view_loader
from mce_llm.vision.probing import FeatureError, encode_images, extract_features


class Scrambled(list):
    """Batches in any order, as processes that deal images out in another way would give them."""

    def __init__(self, *indices):
        super().__init__(
            ViewBatch(
                (torch.tensor(i, dtype=torch.float32)[:, None, None, None],),
                torch.tensor(i) % 3,
                torch.tensor(i),
            )
            for i in indices
        )


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_every_image_once_in_the_source_s_order(small, accelerator):
    source, encoder = small.images(23), small.encoder().eval()
    view = eval_view(8, source.mean, source.std)
    found = encode_images(encoder, source, source, small.data, accelerator, batch_size=5)
    wanted = torch.stack([encoder(view(source[i][0].clone())[None])[0] for i in range(23)]).detach()
    torch.testing.assert_close(found.features, wanted)
    assert found.features.dtype == torch.float32
    assert found.labels.tolist() == source.labels
    assert found.indices.tolist() == list(range(23))


def test_the_module_keeps_its_mode_and_its_statistics(small, accelerator):
    source, encoder = small.images(12), small.encoder().train()
    before = encoder[1].running_mean.clone()
    loader = view_loader(source, eval_view(8, source.mean, source.std), 4, shuffle=False, num_workers=0)
    extract_features(encoder, loader, accelerator)
    assert encoder.training
    assert encoder[1].training
    assert torch.equal(encoder[1].running_mean, before)


def test_rows_are_put_in_order(accelerator):
    found = extract_features(nn.Flatten(), Scrambled([4, 0], [3], [1, 2]), accelerator)
    assert found.features[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert found.labels.tolist() == [0, 1, 2, 0, 1]


def test_low_precision_gives_float32(small):
    source = small.images(6)
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), num_processes=1, autocast=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    loader = view_loader(source, eval_view(8, source.mean, source.std), 4, shuffle=False, num_workers=0)
    exact = extract_features(small.encoder(), loader, Accelerator(cpu=True)).features
    coarse = extract_features(small.encoder(), loader, accelerator).features
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("module", "batches", "pattern"),
    [
        (nn.Flatten(), Scrambled([0, 1], [1, 2]), "4 rows .* 1 of them of images that came before"),
        (nn.Flatten(), Scrambled([0, 2]), "2 rows came .* 0 of them"),
        (nn.Identity(), Scrambled([0, 1]), r"gives \(2, 1, 1, 1\) for a batch of 2 images"),
        (nn.Flatten(), Scrambled(), "no images to encode"),
    ],
)
def test_features_that_are_not_those_of_a_source(module, batches, pattern, accelerator):
    with pytest.raises(FeatureError, match=pattern):
        extract_features(module, batches, accelerator)


def test_features_that_are_not_finite(accelerator):
    class Broken(nn.Module):
        def forward(self, images):
            rows = images.flatten(1)
            return torch.where(rows >= 3, torch.nan, rows)

    with pytest.raises(
        FeatureError, match=r"2 of 5 images .* not finite, the first at index 3.*mixed_precision: no"
    ):
        extract_features(Broken(), Scrambled([0, 1, 2], [3, 4]), accelerator)
