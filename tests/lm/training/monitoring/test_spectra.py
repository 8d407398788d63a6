"""The spectra callback in a real run: when it measures, what reaches which file, and that it changes nothing."""

import pytest
import torch
import transformers

from helpers.models import make_model
from helpers.monitored import Rows, arguments, collate, lines, logged, trained, trainer_for
from helpers.spectra import density_matrices, descending, entropy_rank, hidden_eigenvalues, unmasked
from mce_llm.lm import MatrixLossConfig, patch_model
from mce_llm.lm.training.monitoring import SpectraCallback

SCALARS = ("hidden_effective_rank", "hidden_top_share", "density_effective_rank", "density_top_share")


@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
def test_first_step_is_the_definition_and_later_ones_are_on_time(tmp_path, kind):
    trainer = trained(tmp_path, matrix_kind=kind, matrix_support=7, gradient_accumulation_steps=2)
    for name in SCALARS:
        assert list(logged(trainer, name)) == [1, 2, 4], name
    assert bool(logged(trainer, "tail_mass")) == (kind == "token")

    rows, model, config = Rows(), make_model(), MatrixLossConfig(kind=kind, support=7)
    hidden, logits, _ = unmasked(model, collate([rows[i] for i in range(4)]))  # two micro-batches of two
    states = hidden_eigenvalues(hidden)
    densities = density_matrices(logits, model.lm_head.weight.detach(), config)
    if kind == "marginal":  # each micro-batch has its own matrix; the sample's is their mean, ρ being linear
        assert len(densities) == 1
    expected = {
        "hidden_effective_rank": entropy_rank(states),
        "hidden_top_share": states[0] / states.sum(),
        "density_effective_rank": entropy_rank(descending(densities)).mean(),
    }
    for name, value in expected.items():
        assert logged(trainer, name)[1] == pytest.approx(float(value), rel=1e-4), name

    first = lines(tmp_path / "spectra.jsonl")[0]
    assert (first["step"], first["density"]["kind"]) == (1, kind)
    assert first["hidden"]["positions"] == first["density"]["positions"] == len(hidden)
    known = torch.tensor(first["hidden"]["eigenvalues"], dtype=torch.float64)
    torch.testing.assert_close(known, states[: len(known)], rtol=1e-4, atol=1e-6)
    density = first["density"]
    filled = density["eigenvalues"] + [density["rest"]] * (density["width"] - len(density["eigenvalues"]))
    torch.testing.assert_close(
        torch.tensor(filled, dtype=torch.float64), descending(densities).mean(dim=0), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["token", "marginal", "expected"])
def test_the_run_ends_with_the_same_weights(tmp_path, kind):
    """Dropout is on, so a single random number that is drawn would show."""
    changes = {"matrix_kind": kind, "max_steps": 5}
    with_dropout = {"attention_dropout": 0.5}
    watched = trained(tmp_path / "a", model=make_model(**with_dropout), monitor_steps=1, **changes)
    alone = trained(tmp_path / "b", model=make_model(**with_dropout), monitor_steps=0, **changes)
    assert len(logged(watched, "density_effective_rank")) == 5
    assert not logged(alone, "hidden_effective_rank")
    assert not (tmp_path / "b" / "spectra.jsonl").exists()
    assert logged(watched, "loss") == logged(alone, "loss")
    for a, b in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_dropout_of_that_run_does_something(tmp_path):
    """Negative control of the test above: one more random number changes the weights."""

    class Drawing(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            torch.rand(1)

    weights = []
    for callbacks in ([], [Drawing()]):
        trainer = trainer_for(tmp_path, model=make_model(attention_dropout=0.5))
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train()
        weights.append(trainer.model.lm_head.weight.detach())
    assert not torch.equal(*weights)


def test_a_resumed_run_leaves_the_file_of_an_undisturbed_one(tmp_path):
    changes = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    trained(tmp_path / "a", **changes)
    whole = lines(tmp_path / "a" / "spectra.jsonl")
    assert [line["step"] for line in whole] == [1, 2, 4, 6]
    with (tmp_path / "a" / "spectra.jsonl").open("a") as file:
        file.write('{"step": 7, "hid')  # killed while it was written
    trained(tmp_path / "a", resume=str(tmp_path / "a" / "checkpoint-4"), **changes)
    assert lines(tmp_path / "a" / "spectra.jsonl") == whole


def test_the_observer_is_gone_after_the_step(tmp_path):
    seen = []

    class Look(transformers.TrainerCallback):
        def on_substep_end(self, args, state, control, **_):
            seen.append((state.global_step + 1, trainer.matrix_patch.observer is not None))

        def on_step_end(self, args, state, control, **_):
            seen.append((state.global_step, trainer.matrix_patch.observer is not None))

    trainer = trainer_for(tmp_path, monitor_steps=3, gradient_accumulation_steps=2)
    trainer.add_callback(Look())
    trainer.train()
    assert seen == [
        (1, True),
        (1, False),
        (2, False),
        (2, False),
        (3, True),
        (3, False),
        (4, False),
        (4, False),
    ]


def test_the_log_of_the_loss_stays_due(tmp_path):
    trainer = trained(tmp_path, logging_steps=2, monitor_steps=1)
    assert list(logged(trainer, "loss")) == [2, 4]
    assert list(logged(trainer, "hidden_effective_rank")) == [1, 2, 3, 4]


def test_stock_trainer_by_hand(tmp_path):
    model = make_model()
    patch = patch_model(model, MatrixLossConfig())
    trainer = transformers.Trainer(
        model=model, args=arguments(tmp_path), train_dataset=Rows(), data_collator=collate
    )
    with pytest.raises(ValueError, match=r"Trainer has no matrix_patch; .* patch=…"):
        SpectraCallback(trainer)
    trainer.add_callback(SpectraCallback(trainer, patch, monitor_steps=2))
    trainer.train()
    assert list(logged(trainer, "density_effective_rank")) == [1, 2, 4]


def test_can_be_removed_like_any_callback(tmp_path):
    trainer = trainer_for(tmp_path)
    trainer.remove_callback(SpectraCallback)
    trainer.train()
    assert not logged(trainer, "hidden_effective_rank")


def test_input_embeddings_as_geometry(tmp_path):
    trainer = trained(tmp_path, matrix_embeddings="input", matrix_support=7, max_steps=1)
    model, rows = make_model(), Rows()
    _, logits, _ = unmasked(model, collate([rows[0], rows[1]]))
    config = MatrixLossConfig(embeddings="input", support=7)
    densities = density_matrices(logits, model.get_input_embeddings().weight.detach(), config)
    expected = float(entropy_rank(descending(densities)).mean())
    assert logged(trainer, "density_effective_rank")[1] == pytest.approx(expected, rel=1e-4)
