import pytest
import torch
from safetensors import safe_open

from mce_llm.running.preemption import PreemptedError
from mce_llm.vision.data import ImageDataError
from mce_llm.vision.probing import LinearProbe, ProbeError, ProbeSettings, fitting, linear
from mce_llm.vision.probing.encoders import Encoder
from mce_llm.vision.probing.linear import save_classifier

SMALL = {"optimizer": "sgd", "batch_size": 16, "epochs": 6, "learning_rates": [2.0], "cached_features": True}


def probe(small, folder, images=60, **changed):
    encoder = Encoder(small.encoder(), None, {"name": "small"})
    settings = ProbeSettings(**{**SMALL, **changed})
    return LinearProbe(encoder, small.images(images), small.data, settings, small.run(folder))


def top1(probing, probed, source):
    found = probing.encode(source)
    return (probed.heads.logits(found.features, probed.head).argmax(1) == found.labels).float().mean().item()


@pytest.mark.parametrize(
    ("optimizer", "rate", "epochs", "cached"),
    [("sgd", 4.0, 10, True), ("sgd", 4.0, 10, False), ("lars", 32.0, 40, True)],
)
def test_classes_that_can_be_told_apart_are(optimizer, rate, epochs, cached, small, tmp_path):
    this = probe(
        small, tmp_path, optimizer=optimizer, learning_rates=[rate], cached_features=cached, epochs=epochs
    )
    before = {name: value.clone() for name, value in this.encoder.module.state_dict().items()}
    probed = this.fit()
    assert top1(this, probed, small.images(60, seed=1)) > 0.9
    assert probed.train_images == 60
    for name, value in this.encoder.module.state_dict().items():
        assert torch.equal(value, before[name]), name  # frozen, statistics included


def test_labels_that_mean_nothing_are_not_learnt(small, tmp_path):
    this = probe(small, tmp_path, images=90)
    source = small.images(90, seed=1)
    shuffled = torch.tensor(source.labels)[torch.randperm(90, generator=torch.Generator().manual_seed(0))]
    this._kept = this._kept._replace(labels=shuffled)
    assert top1(this, this.fit(), source) < 0.7


def test_a_rate_is_chosen_on_images_that_no_head_was_trained_on(small, tmp_path, monkeypatch, capsys):
    trained, judged = [], []
    kept_batches, accuracies = linear.KeptBatches, linear._accuracies

    def batches(features, labels, *rest):
        trained.append(features)
        return kept_batches(features, labels, *rest)

    def judge(heads, features, labels):
        judged.append((features, accuracies(heads, features, labels)))
        return judged[-1][1]

    monkeypatch.setattr(linear, "KeptBatches", batches)
    monkeypatch.setattr(linear, "_accuracies", judge)
    this = probe(small, tmp_path, learning_rates=[1e-5, 4.0, 1e-4], held_out=0.2)
    probed = this.fit()
    assert [len(part) for part in trained] == [48, 60]
    both = torch.cat([trained[0], judged[-1][0]])
    assert len(judged[-1][0]) == 12
    assert torch.equal(both.sort(dim=0).values, this._kept.features.sort(dim=0).values)  # every image, once
    assert probed.learning_rate == 4.0
    assert len(probed.heads.heads) == 1
    assert probed.choice["held_out_top1"] == dict(zip(["1e-05", "4", "0.0001"], judged[-1][1], strict=True))
    assert probed.choice["trained_on"] == 48
    said = capsys.readouterr().out
    assert "chosen: 4, on 12 of the training images" in said
    assert "4 is at the end of learning_rates" in said


def test_equally_good_rates_the_smallest_and_no_retraining(small, tmp_path, monkeypatch):
    monkeypatch.setattr(linear, "_accuracies", lambda heads, features, labels: [0.5, None, 0.75, 0.75])
    this = probe(small, tmp_path, learning_rates=[1.0, 9.0, 3.0, 2.0], retrain=False, epochs=1)
    probed = this.fit()
    assert (probed.head, probed.learning_rate, probed.train_images) == (3, 2.0, 54)
    assert probed.choice["held_out_top1"]["9"] is None
    assert len(probed.heads.heads) == 4


def test_a_sweep_gives_what_its_best_rate_gives_alone(small, tmp_path):
    swept = probe(small, tmp_path / "sweep", learning_rates=[1e-4, 2.0]).fit()
    alone = probe(small, tmp_path / "alone", learning_rates=[2.0]).fit()
    assert torch.equal(swept.heads.heads[0].weight, alone.heads.heads[0].weight)


class Stop:
    """Stands for SIGTERM: after so many steps, save and leave."""

    def __init__(self, steps):
        self.left = steps

    def __call__(self, save, path):
        self.left -= 1
        if self.left == 0:
            save()
            raise PreemptedError("test", path)


# 60 images in batches of 16 are 4 steps an epoch; 54 of them too. So 24 steps choose, and 24 follow.
@pytest.mark.parametrize(("cached", "steps"), [(True, 6), (True, 8), (True, 24), (True, 31), (False, 9)])
def test_a_run_that_was_stopped_goes_on_exactly(cached, steps, small, tmp_path, monkeypatch):
    changed = {"learning_rates": [0.5, 2.0], "cached_features": cached, "optimizer": "lars"}
    whole = probe(small, tmp_path / "whole", **changed).fit()
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "leave_if_asked", Stop(steps))
        with pytest.raises(PreemptedError):
            probe(small, tmp_path / "parts", **changed).fit()
    torch.manual_seed(99)
    again = probe(small, tmp_path / "parts", **changed)
    assert again.run.checkpoint is not None
    resumed = again.fit()
    assert torch.equal(resumed.heads.heads[0].weight, whole.heads.heads[0].weight)
    assert torch.equal(resumed.heads.norm.running_var, whole.heads.norm.running_var)
    assert resumed.choice == whole.choice
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert lines[0] == lines[1]
    assert lines[0].count("\n") == 12


def test_divergence_is_an_error_of_an_only_rate(small, tmp_path):
    def wild(name, rates):
        this = probe(small, tmp_path / name, learning_rates=rates, batch_norm=False, momentum=0.0)
        this._kept = this._kept._replace(features=this._kept.features * 100)
        return this

    with pytest.raises(ProbeError, match=r"not finite in epoch 1, step \d.*lower learning_rates"):
        wild("one", [3e39]).fit()
    both = wild("two", [3e39, 0.01]).fit()
    assert both.learning_rate == 0.01
    assert both.choice["held_out_top1"]["3e+39"] is None
    assert "NaN" not in (tmp_path / "two" / "metrics.jsonl").read_text()


def test_too_few_images_to_hold_some_out(small, tmp_path):
    with pytest.raises(
        ImageDataError, match=r"3 training images are too few .* 3 classes.*one learning rate"
    ):
        probe(small, tmp_path, images=3, learning_rates=[1.0, 2.0]).fit()


def test_a_last_batch_of_one_image_is_left_out(small, tmp_path):
    this = probe(small, tmp_path, images=49, epochs=1)  # 3 · 16 + 1
    this.fit()
    assert '"step": 3' in (tmp_path / "metrics.jsonl").read_text()


def test_the_file_gives_the_same_logits(small, tmp_path):
    this = probe(small, tmp_path)
    probed = this.fit()
    save_classifier(probed, ["red", "green", "blue"], tmp_path)
    with safe_open(tmp_path / linear.CLASSIFIER, "pt") as file:
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        assert file.metadata()["classes"] == '["red", "green", "blue"]'
    assert parts.keys() == {"weight", "bias", "running_mean", "running_var"}
    rows = this._kept.features
    normal = (rows - parts["running_mean"]) / (parts["running_var"] + 1e-6).sqrt()
    torch.testing.assert_close(normal @ parts["weight"].T + parts["bias"], probed.heads.logits(rows, 0))
