"""The tasks for lm-evaluation-harness: their numbers are ours; and what its own GSM8K filters get wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("lm_eval")

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import exact_match_fn
from lm_eval.api.task import ConfigurableTask
from lm_eval.filters import build_filter_ensemble
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from mce_llm.data import get_prompt, write_jsonl
from mce_llm.errors import MceLlmError
from mce_llm.eval.answers import extract_answer, is_correct
from mce_llm.eval.gsm8k import Gsm8kConfig
from mce_llm.eval.lm_eval_tasks import task_folder
from mce_llm.eval.lm_eval_tasks.utils import checked_metadata, load_gsm8k
from mce_llm.eval.metric import load_metric
from mce_llm.eval.shots import SHOTS

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


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def run_harness(model, tokenizer, metadata, **options):
    """What the harness asks and counts with `--metadata`, and the model's arguments beside it, as its command line does."""
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")
    found = simple_evaluate(
        harness,
        tasks=["mce_gsm8k"],
        task_manager=TaskManager(
            include_path=str(task_folder()),
            include_defaults=False,
            metadata={"pretrained": "some/model", "dtype": "float32", **metadata},
        ),
        log_samples=True,
        bootstrap_iters=0,
        **options,
    )
    assert found is not None
    return found["samples"]["mce_gsm8k"]


def test_metadata_chooses_prompt_data_and_limit_of_tokens(tmp_path, monkeypatch, llama, tokenizer):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    data = write_jsonl(
        [
            {"asked": "1 + 1?", "told": 2.0},
            {"asked": "When?", "told": "5:30"},
            {"asked": "2 + 2?", "told": "4"},
        ],
        tmp_path / "data.jsonl",
    )
    metadata = {
        "data": str(data),
        "split": "train[1:]",
        "columns": {"question": "asked", "answer": "told"},
        "unreadable_references": "skip",
        "prompt": "plain",
        "max_new_tokens": 3,
    }
    (sample,) = run_harness(llama, tokenizer, metadata)
    prompt, generation = sample["arguments"][0]
    assert prompt == get_prompt("plain").evaluation_prompt("2 + 2?")
    assert generation["until"] == list(get_prompt("plain").stop)
    assert generation["max_gen_toks"] == 3
    assert sample["doc"] == {"question": "2 + 2?", "answer": "4"}


@pytest.mark.parametrize(("prompt", "shots"), [("chat", None), ("chat-cot", 2), ("chat", 8)])
def test_chats_are_those_of_our_own_scripts(
    prompt, shots, monkeypatch, llama, tokenizer, questions, question_rows
):
    """The harness's text with its own chat template is ours, turns of worked examples included."""
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    monkeypatch.setattr(tokenizer, "chat_template", CHATML)
    metadata = {"data": str(questions), "prompt": prompt, "max_new_tokens": 1}
    metadata |= {} if shots is None else {"num_shots": shots}
    monkeypatch.setattr(
        HFLM, "generate_until", lambda self, requests, disable_tqdm=False: ["5"] * len(requests)
    )
    samples = run_harness(
        llama, tokenizer, metadata, apply_chat_template=True, fewshot_as_multiturn=True, limit=2
    )
    ours = Gsm8kConfig(model="m", output="o", prompt=prompt, num_shots=shots).template("gsm8k")
    for sample, row in zip(samples, question_rows, strict=False):
        text = sample["arguments"][0][0]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ours.encode_prompt(
            tokenizer, row["question"], evaluation=True
        )
        assert text.count("<|im_start|>user") == 1 + (shots or 0)


@pytest.mark.parametrize("num", [0, 3])
def test_the_harness_writes_turns_as_we_do(num, tokenizer, monkeypatch, llama):
    """Its own few-shot turns (of a task that is not ours in anything but the words) against ours."""
    monkeypatch.setattr(tokenizer, "chat_template", CHATML)
    shots = SHOTS["gsm8k"][:num]
    messages = []
    for asked, told in shots:
        messages += ConfigurableTask.build_qa_turn(SimpleNamespace(), q=asked, a=told, few_delim="\n\n")
    messages += ConfigurableTask.build_qa_turn(SimpleNamespace(), q="How many?", few_delim="")
    harness = HFLM(pretrained=llama, tokenizer=tokenizer, device="cpu")
    text = harness.apply_chat_template([message.to_dict() for message in messages])
    template = Gsm8kConfig(model="m", output="o", prompt="chat", num_shots=num or None).template("gsm8k")
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == template.encode_prompt(
        tokenizer, "How many?", evaluation=True
    )


@pytest.mark.parametrize(
    ("metadata", "options", "message"),
    [
        ({"promt": "chat"}, {}, r"unknown key 'promt' \(did you mean 'prompt'\?\); .*the tasks take data, "),
        ({"system_prompt": "x"}, {}, "unknown key 'system_prompt': set it with --system_instruction"),
        ({"prompt": "chats"}, {}, r"prompt must be one of .*, got 'chats' \(did you mean 'chat'\?\)"),
        (
            {"prompt": "chat"},
            {},
            "the prompt chat needs the chat template of the tokenizer; add --apply_chat_template",
        ),
        ({}, {"apply_chat_template": True}, "--apply_chat_template would put the prompt metamath"),
        (
            {"prompt": "chat", "num_shots": 2},
            {"apply_chat_template": True, "fewshot_as_multiturn": False},
            "let --fewshot_as_multiturn be true",
        ),
        ({"num_shots": 2}, {}, "the prompt metamath shows no worked examples"),
        ({"max_new_tokens": "many"}, {}, "max_new_tokens must be a whole number, got 'many'"),
        ({"max_new_tokens": 0, "columns": "{"}, {}, "must be at least 1, got 0; .*columns is no JSON"),
        ({"unreadable_references": "drop"}, {}, "unreadable_references must be one of refuse, skip"),
        ({"columns": {"question": "q"}}, {}, "there is no column 'q' for the question"),
    ],
)
def test_metadata_that_would_be_swallowed(
    metadata, options, message, monkeypatch, llama, tokenizer, questions
):
    monkeypatch.setattr(tokenizer, "chat_template", CHATML)
    with pytest.raises(MceLlmError, match=message):
        run_harness(llama, tokenizer, {"data": str(questions), **metadata}, limit=1, **options)


def test_columns_that_are_not_asked_are_printed(tmp_path, capsys):
    data = write_jsonl([{"question": "1 + 1?", "answer": "2", "id": 3}], tmp_path / "data.jsonl")
    assert load_gsm8k(data=str(data))["test"].to_list() == [{"question": "1 + 1?", "answer": "2"}]
    assert "without the columns 'id'" in capsys.readouterr().out


def test_arguments_of_models_pass(questions):
    """The harness puts them into the metadata, and most have no name that a task could know."""
    known = {"pretrained": "m", "base_url": "u", "gpu_memory_utilization": 0.9, "attn_implementation": "sdpa"}
    known |= {"parallelize": True, "peft": "p", "num_concurrent": 2, "version": 1.0, "config_source": "x"}
    assert checked_metadata({**known, "data": "d"}) == {"data": "d"}
    assert checked_metadata({"rope_theta": 1, "ignore": ["rope_theta"]})["ignore"] == ["rope_theta"]
    with pytest.raises(MceLlmError, match=r"unknown key 'rope_theta'.*\"ignore\""):
        checked_metadata({"rope_theta": 1})


@pytest.mark.slow
def test_the_command_line_of_the_harness(tmp_path, model_directory, questions):
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--include_path", str(task_folder())]
    command += ["--model_args", f"pretrained={model_directory},dtype=float32", "--device", "cpu"]
    command += ["--tasks", "mce_gsm8k", "--limit", "2", "--output_path", str(tmp_path), "--metadata"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    given = {"data": str(questions), "prompt": "plain", "max_new_tokens": 4}
    for metadata, code in ((given, 0), ({**given, "promt": "chat"}, 1)):
        result = subprocess.run(
            [*command, json.dumps(metadata)], capture_output=True, text=True, env=environment, check=False
        )
        assert result.returncode == code, result.stderr
    assert "unknown key 'promt' (did you mean 'prompt'?)" in result.stderr
