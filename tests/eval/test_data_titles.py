"""Data are called after the data set, whatever the task."""

import pytest

from mce_llm.eval.data_titles import data_title


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({"data": "gsm8k", "split": "test"}, "GSM8K"),
        ({"data": "openai/gsm8k", "split": "train"}, "GSM8K (train)"),
        ({"data": "ChilleD/SVAMP", "split": "test"}, "SVAMP"),
        ({"data": "/data/svamp/test.jsonl", "split": "test"}, "SVAMP"),
        ({"data": "/data/SVAMP/train.jsonl.gz", "split": "test"}, "SVAMP (train)"),
        ({"data": "svamp_test.json"}, "SVAMP"),
        ({"data": "svamp-dev.json"}, "SVAMP (dev)"),
        ({"data": "C:\\data\\asdiv.csv"}, "ASDiv"),
        ({"data": "../my questions.jsonl"}, "my questions"),
        ({"data": "data/test"}, "test"),
        ({"data": "gsm8k", "limit": 100}, "GSM8K (first 100)"),
        ({"data": "gsm8k", "split": "train", "limit": 5}, "GSM8K (train, first 5)"),
        ({"data": "gsm8k", "split": "test[:10]"}, "GSM8K (test[:10])"),
        ({}, "GSM8K"),
        ({"data": 7}, "GSM8K"),
    ],
)
def test_titles(settings, title):
    assert data_title(settings, "gsm8k") == title
