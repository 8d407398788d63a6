import json

import pytest

from mce_llm.vision.drawing import MeasurementError, read_journal, read_spectra


def write(path, lines, end="\n"):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end)


def test_journal_by_epochs(tmp_path):
    write(
        tmp_path / "metrics.jsonl",
        [
            {"step": 5, "epoch": 1, "train/loss": 3.5, "note": "text", "flag": True},
            {"step": 10, "epoch": 2, "train/loss": float("nan"), "monitor/knn_top1": 0.25},
        ],
    )
    journal = read_journal(tmp_path)
    assert journal.unit == "epoch"
    assert journal.series == {"train/loss": [(1.0, 3.5)], "monitor/knn_top1": [(2.0, 0.25)]}


def test_journal_by_steps_where_an_epoch_is_missing(tmp_path):
    write(tmp_path / "metrics.jsonl", [{"step": 5, "epoch": 1, "a": 1}, {"step": 10, "a": 2}])
    assert read_journal(tmp_path) == type(read_journal(tmp_path))("step", {"a": [(5.0, 1.0), (10.0, 2.0)]})
    assert read_journal(tmp_path / "nowhere").series == {}


def test_spectra_with_ranks_of_the_same_step(tmp_path):
    write(tmp_path / "metrics.jsonl", [{"step": 5, "epoch": 1, "monitor/effective_rank": 7.5}])
    write(
        tmp_path / "spectra.jsonl",
        [
            {"step": 5, "epoch": 1, "encoder": [2, 1], "embedding": [1.0]},
            {"step": 10, "epoch": 2, "encoder": [3, 1], "embedding": [1.0]},
        ],
    )
    first, second = read_spectra(tmp_path)
    assert (first.epoch, first.encoder, first.encoder_rank, first.embedding_rank) == (
        1.0,
        [2.0, 1.0],
        7.5,
        None,
    )
    assert second.encoder_rank is None
    assert read_spectra(tmp_path / "nowhere") == []


def test_a_torn_last_line_is_passed_over_and_others_are_not(tmp_path):
    good = {"step": 5, "epoch": 1, "encoder": [2, 1], "embedding": [1.0]}
    write(tmp_path / "spectra.jsonl", [good, '{"step": 10, "epo'], end="")
    assert len(read_spectra(tmp_path)) == 1
    write(tmp_path / "spectra.jsonl", ['{"step": 10, "epo', good])
    with pytest.raises(MeasurementError, match=r"line 1 of .*spectra.jsonl is no measurement"):
        read_spectra(tmp_path)
    write(tmp_path / "spectra.jsonl", [{"step": 5, "epoch": 1, "encoder": ["a"], "embedding": []}, good])
    with pytest.raises(MeasurementError, match=r"line 1 of .*spectra.jsonl is no spectrum"):
        read_spectra(tmp_path)
