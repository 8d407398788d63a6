"""Early stopping from the recipe's settings; an interrupted run stops where the other one does."""

import json

import pytest

from helpers.recipe_fixtures import folder, settings  # noqa: F401
from helpers.recipes import logged, words
from helpers.scripts import load_script

main = load_script("recipes/finetune.py").main


@pytest.fixture
def stopping(folder, settings):  # noqa: F811
    """No step improves: the learning rate is 0, so the third evaluation without improvement is at step 4."""
    return settings | {
        "eval_dataset": folder / "held_out.jsonl",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 0,
        "max_steps": 20,
        "early_stopping_patience": 3,
    }


def steps(output):
    return json.loads((output / "trainer_state.json").read_text())["global_step"]


def test_it_stops_after_as_many_evaluations_without_improvement(stopping):
    main(words(stopping))
    assert steps(stopping["output_dir"]) == 4
    assert len(logged(stopping["output_dir"], "eval_loss")) == 5  # one more of what is saved


def test_a_resumed_run_goes_on_counting(stopping, tmp_path):
    script = load_script("recipes/finetune.py")
    output = tmp_path / "interrupted"

    class Stop(Exception):
        pass

    trainer = script.MatrixTrainer

    class Interrupted(trainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 3:
                raise Stop
            return super().training_step(*args, **kwargs)

    script.MatrixTrainer = Interrupted
    with pytest.raises(Stop):
        script.main(words(stopping, output_dir=output))
    script.MatrixTrainer = trainer
    script.main(words(stopping, output_dir=output))
    assert steps(output) == 4  # a count that began anew would stop at step 6


def test_the_best_model_is_loaded_at_the_end(stopping):
    main(words(stopping, load_best_model_at_end="true", learning_rate=0.01, max_steps=3))
    state = json.loads((stopping["output_dir"] / "trainer_state.json").read_text())
    assert state["best_metric"] == pytest.approx(
        min(logged(stopping["output_dir"], "eval_loss")[:-1]), rel=1e-6
    )
