import pytest
import torch

from mce_llm.running.preemption import PreemptedError
from mce_llm.vision.data import classify_view, view_loader
from mce_llm.vision.probing import FineTuningSettings, ProbeError, encode_images, fine_tuning
from mce_llm.vision.probing.fine_tuning import fine_tune, with_classifier

SMALL = {
    "fraction": 1.0,
    "batch_size": 16,
    "epochs": 5,
    "encoder_learning_rate": 0.5,
    "classifier_learning_rate": 4.0,
}


def tuned(small, folder, **changed):
    settings = FineTuningSettings(**{**SMALL, **changed})
    run, source = small.run(folder), small.images(64)
    model = with_classifier(small.encoder(), 12, 3, seed=0)
    view = classify_view(8, source.mean, source.std, crop_scale_min=0.3)
    loader = view_loader(source, view, settings.batch_size, seed=0, num_workers=0)
    fine_tune(model, loader, settings, run)
    return model, run


def test_everything_is_trained_and_norms_follow(small, tmp_path):
    before = with_classifier(small.encoder(), 12, 3, seed=0).state_dict()
    model, run = tuned(small, tmp_path)
    for name, value in model.state_dict().items():
        assert not torch.equal(value, before[name]), name
    test = small.images(60, seed=1)
    found = encode_images(model, test, small.images(64), small.data, run.accelerator, 16)
    assert (found.features.argmax(1) == found.labels).float().mean() > 0.9


def test_encoder_and_classifier_have_rates_of_their_own(small, tmp_path):
    before = with_classifier(small.encoder(), 12, 3, seed=0)
    start = {name: value.clone() for name, value in before.named_parameters()}
    model, _ = tuned(small, tmp_path, encoder_learning_rate=0.0, epochs=1)
    for name, value in model.named_parameters():
        assert torch.equal(value, start[name]) == name.startswith("encoder."), name


@pytest.mark.parametrize("steps", [6, 8])  # 4 an epoch: within one, and at its end
def test_a_run_that_was_stopped_goes_on_exactly(steps, small, tmp_path, monkeypatch):
    whole, _ = tuned(small, tmp_path / "whole")

    def stop(save, path, left=[steps]):  # noqa: B006 - a counter
        left[0] -= 1
        if left[0] == 0:
            save()
            raise PreemptedError("test", path)

    with monkeypatch.context() as patch:
        patch.setattr(fine_tuning, "leave_if_asked", stop)
        with pytest.raises(PreemptedError):
            tuned(small, tmp_path / "parts")
    resumed, _ = tuned(small, tmp_path / "parts")
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert lines[0] == lines[1]
    assert lines[0].count("\n") == 5


def test_divergence_is_an_error(small, tmp_path):
    with pytest.raises(ProbeError, match=r"not finite in epoch 1, step \d.*lower encoder_learning_rate"):
        tuned(small, tmp_path, classifier_learning_rate=3e39)
