"""What a user reads in the terminal."""

import re

import pytest
from transformers import TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from helpers.monitored import trainer_for
from mce_llm.lm.training.monitoring import PlainLinesCallback, ProgressLinesCallback
from mce_llm.lm.training.monitoring.progress import describe


def run(folder, **changes):
    trainer = trainer_for(
        folder,
        eval_strategy="steps",
        eval_steps=2,
        max_steps=4,
        save_strategy="steps",
        save_steps=4,
        **changes,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("bar", [False, True])
def test_one_line_for_each_log_in_order(tmp_path, capsys, bar):
    trainer = run(tmp_path, disable_tqdm=not bar, report_to="tensorboard")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    shown = [re.sub(r" ·.*| in \d.*", "", line) for line in lines]
    assert shown == [
        f"curves: tensorboard --logdir {tmp_path / 'runs'}",
        "step 1/4",
        "step 2/4",
        "eval step 2/4",
        "step 3/4",
        "step 4/4",
        "eval step 4/4",
        "trained to step 4",
    ]
    first, evaluation = lines[1], lines[3]
    pieces = (
        r"loss \S+ · ce \S+ · mce \S+ · grad \S+ · lr 0.01 · \S+ tok/s · hidden rank \S+ · density rank \S+"
    )
    assert re.search(pieces, first), first
    assert re.search(r"loss \S+ · ce \S+ · mce \S+ · hidden rank \S+ · tail", evaluation), evaluation
    assert "{" not in "".join(lines)
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert (ProgressLinesCallback if bar else PlainLinesCallback) in kinds
    assert not kinds & {ProgressCallback, PrinterCallback}


def test_evaluation_without_training_is_shown_once(tmp_path, capsys):
    trainer_for(tmp_path).evaluate()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("eval step 0/0 · loss")


def test_other_peoples_names_and_texts():
    state = TrainerState(global_step=3, max_steps=9)
    logs = {"loss": 1.0, "reward": 0.123456, "note": "a text", "flag": True, "total_flos": 1e9}
    assert describe(logs, state) == "step 3/9 · loss 1.0000 · reward 0.1235"


def test_can_be_removed_by_the_names_of_the_stock_ones(tmp_path, capsys):
    trainer = trainer_for(tmp_path)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert capsys.readouterr().out == ""
