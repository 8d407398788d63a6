"""The tasks for lm-evaluation-harness: their numbers are ours; and what its own GSM8K filters get wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("lm_eval")

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import exact_match_fn
from lm_eval.filters import build_filter_ensemble
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from mce_llm.data import get_prompt, write_jsonl
from mce_llm.eval.answers import extract_answer, is_correct
from mce_llm.eval.lm_eval_tasks import task_folder
from mce_llm.eval.metric import load_metric

pytestmark = pytest.mark.ci

MATH_RECORDS = [
    {"problem": f"What is ${n}/2$?", "solution": rf"It is $\boxed{{\frac{{{n}}}{{2}}}}$."}
    for n in range(1, 6)
]


class Reciter(HFLM):
    """A real model behind the harness's own interface, with answers put after what it generates.

    A random model never answers, so all judgements would be alike. Its generations stay; to each prompt belongs a
    tail, and every third tail gives a wrong answer.
    """

    tails: dict[str, str]

    def generate_until(self, requests, disable_tqdm=False):
        texts = super().generate_until(requests, disable_tqdm=True)
        return [text + self.tails[request.args[0]] for text, request in zip(texts, requests, strict=True)]


def manager(data):
    """Return what `--include_path FOLDER --metadata '{"data": ...}'` makes on the command line."""
    return TaskManager(include_path=str(task_folder()), include_defaults=False, metadata={"data": str(data)})


def evaluate(name, data, model, tokenizer, tails):
    harness = Reciter(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")
    harness.tails = tails
    results = simple_evaluate(
        harness,
        tasks=[name],
        task_manager=manager(data),
        log_samples=True,
        bootstrap_iters=0,
        gen_kwargs={"max_gen_toks": 24},
    )
    assert results is not None
    return results["results"][name], results["samples"][name]


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_the_harness_gives_our_numbers(
    tmp_path, monkeypatch, llama, tokenizer, questions, question_rows, name
):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    prompt = get_prompt("metamath")
    if name == "math":
        pytest.importorskip("math_verify")
        data = write_jsonl(MATH_RECORDS, tmp_path / "math.jsonl")
        asked, golds = [record["problem"] for record in MATH_RECORDS], [f"{n}/2" for n in range(1, 6)]
    else:
        data = questions
        asked, golds = [row["question"] for row in question_rows], [row["answer"] for row in question_rows]
    endings = ["\nThe answer is: {}", "\nSo we have {}", "\nThe answer is: 1{}"]
    tails = {
        prompt.evaluation_prompt(question): endings[n % 3].format(gold)
        for n, (question, gold) in enumerate(zip(asked, golds, strict=True))
    }
    result, samples = evaluate(f"mce_{name}", data, llama, tokenizer, tails)

    assert [sample["arguments"][0][0] for sample in samples] == list(tails)
    texts = [sample["resps"][0][0] for sample in samples]
    references = [sample["doc"]["answer"] for sample in samples]
    style = "math" if name == "math" else None
    answers = [extract_answer(text, style=style) for text in texts]
    ours = [is_correct(answer, gold) for answer, gold in zip(answers, references, strict=True)]
    assert [bool(sample["exact_match"]) for sample in samples] == ours
    assert 0 < sum(ours) < len(ours)
    assert result["exact_match,none"] == pytest.approx(sum(ours) / len(ours))
    metric = load_metric(f"{name}_accuracy").compute(predictions=texts, references=references)
    assert metric["accuracy"] == pytest.approx(result["exact_match,none"])
    assert metric["fallback"] / metric["n"] == pytest.approx(result["fallback,none"])
    assert metric["no_answer"] / metric["n"] == pytest.approx(result["no_answer,none"])
    assert metric["fallback"] > 0


def test_decoding_is_that_of_the_prompt(questions):
    task = manager(questions).load(["mce_gsm8k"])["tasks"]["mce_gsm8k"]
    assert task.config.generation_kwargs == {
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": 512,
        "until": list(get_prompt("metamath").stop),
    }


def test_the_folder_is_printed():
    result = subprocess.run(
        [sys.executable, "-m", "mce_llm.eval.lm_eval_tasks"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == str(task_folder())
    assert {path.name for path in task_folder().glob("*.yaml")} == {"mce_gsm8k.yaml", "mce_math.yaml"}


# solution × reference × whether it is right × what strict-match and flexible-extract of the harness's gsm8k say.
STOCK_IS_WRONG = [
    ("The answer is: 18", "18", True, False, True),
    ("So she makes $\\boxed{18}$ dollars.", "18", True, False, True),
    ("A: 18", "18", True, False, True),
    ("#### $18", "18", True, False, True),
    ("#### 18.00", "18", True, False, False),
    ("#### −5", "-5", True, False, False),
    ("#### -$5", "-5", True, False, True),
    ("#### **18**", "18", True, False, True),
    ("####18", "18", True, False, True),
    ("#### .5", "0.5", True, False, False),
    ("#### 1 1/2", "1.5", True, False, False),
    ("#### 3/4", "0.75", True, False, False),
    ("#### 3/4", "3", False, True, False),
    ("#### 1/2 hour", "1", False, True, False),
    ("#### 18\n\nTom has 5 apples. How many has he?\n#### 5", "18", True, True, False),
    ("#### 18\n\nTom has 5 apples. How many has he?\n#### 5", "5", False, False, True),
    ("#### 18\nSo in 7 days she makes 126.", "126", False, False, True),
    ("#### 18\nSo in 7 days she makes 126.", "18", True, True, False),
    ("#### 5:30", "5", False, True, False),
    ("#### 12-15", "12", False, True, False),
    ("#### 2 million", "2", False, True, True),
    ("#### 2 million", "2000000", True, False, False),
    ("#### 5 + 13 = 18", "5", False, True, False),
    ("#### 5 + 13 = 18", "18", True, False, True),
    ("The answer is: 18.", "18", True, False, True),
    ("The answer is: 18.00", "18", True, False, False),
    ("The answer is: 18 (9 eggs at $2).", "18", True, False, False),
    ("The answer is: 18 (9 eggs at $2).", "2", False, False, True),
    ("\\boxed{18}\nEach of the 9 eggs brings $2.", "18", True, False, False),
    ("The answer is: 1 080", "1080", True, False, False),
    ("The answer is: \\frac{3}{4}", "0.75", True, False, False),
    ("The answer is: \\frac{3}{4}", "4", False, False, True),
    ("The answer is eighteen.", "18", True, False, False),
    ("The answer is 5:30.", "30", False, False, True),
    ("The answer is: 18\n\nQ: Tom has 3 and buys 4?\nA: 7", "18", True, False, False),
    ("The answer is: 18\n\nQ: Tom has 3 and buys 4?\nA: 7", "7", False, False, True),
    ("He has \\boxed{1{,}234} left.", "1234", True, False, False),
    ("The answer is: 18 dollars, 3 for each of the 6.", "18", True, False, False),
    ("The loss is $-5$, so the answer is $-5$.", "-5", True, False, True),
    ("The answer is $1,234.50$.", "1234.5", True, False, False),
    ("The answer is: 3.", "3", True, False, True),
    ("In all: $18.", "18", True, False, True),
    ("The answer is 12,50.", "1250", False, False, True),
]


def stock_judgements(solution, gold):
    """Judge a solution with the filters and the metric of the installed harness's own gsm8k task."""
    folder = Path(lm_eval.tasks.__file__).parent / "gsm8k"
    config = yaml.safe_load((folder / "gsm8k.yaml").read_text(encoding="utf-8"))
    (metric,) = config["metric_list"]
    options = {key: metric[key] for key in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    instance = Instance("generate_until", {}, ("?",), 0)
    instance.resps = [solution]
    judgements = {}
    for filters in config["filter_list"]:
        steps = [
            [step["function"], {key: value for key, value in step.items() if key != "function"}]
            for step in filters["filter"]
        ]
        build_filter_ensemble(filters["name"], steps).apply([instance])
        found = instance.filtered_resps[filters["name"]]
        score = exact_match_fn(predictions=[found], references=[f"So it is.\n#### {gold}"], **options)
        judgements[filters["name"]] = bool(score["exact_match"])
    return judgements


@pytest.mark.parametrize(("solution", "gold", "right", "strict", "flexible"), STOCK_IS_WRONG)
def test_where_the_stock_filters_are_wrong_ours_are_right(solution, gold, right, strict, flexible):
    assert stock_judgements(solution, gold) == {"strict-match": strict, "flexible-extract": flexible}
    assert right not in (strict, flexible) or strict != flexible
    assert is_correct(extract_answer(solution), gold) is right


def test_the_stock_filters_are_run_as_the_harness_runs_them():
    assert stock_judgements("so 18\n#### 18", "18") == {"strict-match": True, "flexible-extract": True}
    assert stock_judgements("so 17\n#### 17", "18") == {"strict-match": False, "flexible-extract": False}
