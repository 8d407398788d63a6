"""`mce-llm compare` on likelihoods: its tables at 80 columns, its JSON, and what bad input gets."""

import json

import pytest

from helpers.evaluations import write_run
from helpers.likelihoods import likelihood_items, write_likelihood


@pytest.fixture
def folders(tmp_path):
    """Of three methods, two seeds each: ce, mce (better), emo."""

    def write(name, seed, **options):
        items = likelihood_items(60, seed=seed, **options)
        return write_likelihood(tmp_path / name / "likelihood", items, model=name)

    return {
        arm: [write(f"{arm}-{k}", 10 * place + k, **options) for k in (1, 2)]
        for place, (arm, options) in enumerate(
            (("ce", {"sharpness": 0.1}), ("mce", {"shift": -0.2}), ("emo", {"sharpness": 0.1}))
        )
    }


def shown(result):
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def test_one_pair(command, folders):
    a, b = folders["ce"][0], folders["mce"][0]
    words = ("compare", a, b, "--primary", "numbers.nats", "--smallest-difference", "0.01", "--list", 2)
    result = command(*words, columns=80)
    text = shown(result)
    for part in (
        "GSM8K, likelihood of reference solutions, 60 questions",
        "B (mce-1) minus A (ce-1)",
        "numbers.nats *",
        "* the primary measure",
        "for these trained models alone",
        "numbers.nats, in detail",
        "studentised bootstrap, over questions alone",
        "questions whose numbers B finds more likely (the first 2)",
        "Negative log-likelihood, tokens of numbers (the primary measure): B (mce-1) is better than A (ce-1)",
        "It is one training seed each",
        "no record of 2 trainings",
    ):
        assert part in text
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.split()}
    assert len(rows["all.nats"].split()) >= 8  # no number is cut or folded at 80 columns
    assert "…" not in rows["numbers.ece_debiased"]
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_several_arms_and_seeds(command, folders):
    words = [
        "compare",
        "--baseline",
        *folders["ce"],
        "--arm",
        "mce",
        *folders["mce"],
        "--arm",
        "emo",
        *folders["emo"],
    ]
    text = shown(command(*words, columns=100))
    for part in (
        "B (mce) minus A (ce)",
        "C (emo) minus A (ce)",
        "p (Holm)",
        "B − A, each seed",
        "simultaneous interval",
        "over seeds and questions; p corrected for 2 arms",
        "no measure was named as primary: 19 measures were compared",
        "at most 5 % (Holm)",
    ):
        assert part in text


def test_json_and_file(command, folders, tmp_path):
    words = [
        "compare",
        folders["ce"][0],
        folders["mce"][0],
        "--confidence",
        0.9,
        "--resamples",
        300,
        "--seed",
        4,
    ]
    result = command(*words, "--json", "--output", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "out.json").read_text())
    assert (printed["task"], printed["confidence"], printed["resamples"], printed["seed"]) == (
        "likelihood",
        0.9,
        300,
        4,
    )
    assert len(printed["arms"][0]["questions"]) == 60
    again = json.loads(command(*words[:-1], 5, "--json").stdout)
    one, other = (found["measures"][0]["arms"][0]["interval"] for found in (printed, again))
    assert one != other  # another seed draws other questions
    assert one == pytest.approx(other, abs=0.05)


def test_answers_beside_likelihoods(command, folders, tmp_path):
    answers = write_run(tmp_path / "answers" / "gsm8k", [True, False] * 30)
    result = command("compare", answers, folders["mce"][0])
    assert result.exit_code == 2
    assert (
        "answers cannot be compared with likelihoods: answers are evaluations of answers, mce-1 of likelihoods"
        in (" ".join(result.stderr.split()))
    )


@pytest.mark.parametrize("option", [("--primary", "accuracy"), ("--smallest-difference", "0.01")])
def test_what_is_for_likelihoods_alone(command, tmp_path, option):
    pair = [write_run(tmp_path / name / "gsm8k", [True, False, name == "b"]) for name in ("a", "b")]
    result = command("compare", *pair, *option)
    assert result.exit_code == 2
    assert "evaluations of answers have one measure" in " ".join(result.stderr.split())


def test_other_tokenizers(command, folders, tmp_path):
    other = write_likelihood(
        tmp_path / "other" / "likelihood", likelihood_items(60, seed=3), tokenizer="other"
    )
    result = command("compare", folders["ce"][0], other)
    assert result.exit_code == 2
    assert "have different tokenizers" in " ".join(result.stderr.split())
