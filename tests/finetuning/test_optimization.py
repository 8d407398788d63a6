"""Optimizers and schedules that can be made, and one message for those that cannot."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, SchedulerType
from transformers.training_args import OptimizerNames

from helpers.recipes import words
from helpers.scripts import load_script
from mce_llm.finetuning.optimization import check_optimization, optimization_problems
from mce_llm.lm import MatrixTrainingArguments
from mce_llm.running.settings import ConfigurationError

finetune = load_script("recipes/finetune.py")

NEEDED = {
    "cosine_with_min_lr": {"min_lr": 1e-7},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 10},
    "greedy": {"min_lr": 1e-7},
}
# What another machine may have, and this one need not.
ELSEWHERE = (
    "xla",
    "npu",
    "anyprecision",
    "torch_4bit",
    "torch_8bit",
    "galore",
    "lomo",
    "grok",
    "schedule_free",
)
ELSEWHERE += ("apollo", "stable", "bnb", "_8bit", "_32bit", "ademamix")


@pytest.fixture
def problems(tmp_path):
    def ask(model=None, **settings):
        usual = {"use_cpu": True, "report_to": "none", "warmup_steps": 0.03, "eval_strategy": "epoch"}
        return optimization_problems(
            MatrixTrainingArguments(output_dir=str(tmp_path), **{**usual, **settings}), model, step=True
        )

    return ask


@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType])
def test_every_schedule(problems, kind):
    assert problems(lr_scheduler_type=kind, lr_scheduler_kwargs=NEEDED.get(kind)) == []
    (problem,) = problems(lr_scheduler_type=kind, lr_scheduler_kwargs={"min_lrr": 1e-7})
    assert f"lr_scheduler_kwargs: lr_scheduler_type {kind} does not take min_lrr" in problem


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames])
def test_every_optimizer(problems, name):
    """It can be made here, or is refused in one line that names it."""
    target = "all-linear" if name.startswith(("galore", "apollo")) else None
    found = problems(optim=name, optim_target_modules=target)
    assert all(problem.startswith(f"optim {name}: ") and "\n" not in problem for problem in found)
    if not any(part in name for part in ELSEWHERE):
        assert found == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "lr_scheduler_type cosine_with_min_lr: ValueError: One of min_lr or min_lr_rate should be set",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"min_lr_ratio": 0.1}},
            "lr_scheduler_type warmup_stable_decay needs lr_scheduler_kwargs: {num_decay_steps: …}",
        ),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "half"}},
            "lr_scheduler_type cosine with lr_scheduler_kwargs {'num_cycles': 'half'}: ValueError",
        ),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 1}},
            "does not take num_cycle (did you mean 'num_cycles'?)",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}},
            "would raise the learning rate to 0.001, above learning_rate 5e-05",
        ),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}},
            "lr_scheduler_type polynomial with lr_scheduler_kwargs {'lr_end': 1.0}: ValueError: lr_end",
        ),
        (
            {"lr_scheduler_type": "greedy"},
            "lr_scheduler_type greedy keeps the learning rate at min_lr 0.001 or above, and learning_rate is 5e-05",
        ),
        ({"lr_scheduler_kwargs": "cosine.json"}, "lr_scheduler_kwargs must be a mapping, got 'cosine.json'"),
        ({"optim_args": "momentum"}, "optim_args must be a mapping, or text such as momentum=0.9"),
        ({"optim": "sgd", "optim_args": "momentun=0.9"}, "does not read momentun (did you mean 'momentum'?)"),
        (
            {"optim": "sgd", "optim_args": "momentum=high"},
            "optim sgd with optim_args momentum=high: ValueError",
        ),
        (
            {"optim": "sgd", "optim_args": "nesterov=true"},
            "optim sgd with optim_args nesterov=true: ValueError",
        ),
        ({"optim_args": "eps=1"}, "optim_args: optim adamw_torch_fused does not read eps"),
        ({"adam_beta1": 1.5}, "optim adamw_torch_fused: ValueError: Invalid beta"),
        ({"learning_rate": -1.0}, "learning_rate must be 0 or more, got -1.0"),
    ],
)
def test_settings_that_make_none(problems, settings, message):
    assert message in problems(**settings)[0]


def test_what_is_right_with_arguments(problems):
    assert problems(optim="sgd", optim_args="momentum=0.9, nesterov=true") == []
    assert problems(optim="adagrad", optim_args="lr_decay=1e-3") == []


def test_nothing_is_disturbed(problems):
    before = torch.random.get_rng_state()
    problems()
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_model_without_weights_serves_for_its_names(problems):
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
            )
        )
    assert problems(model, optim="sgd", optim_target_modules=["q_proj"]) == []
    assert all(p.grad is None for p in model.parameters())


def test_all_at_once(tmp_path):
    arguments = MatrixTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", optim_args="x", lr_scheduler_kwargs={"y": 1}
    )
    with pytest.raises(ConfigurationError, match=r"(?s)- optim_args must.*- lr_scheduler_kwargs: .* y"):
        check_optimization(arguments, None)


def test_the_recipe_says_so_before_data_are_read(settings, capsys):
    code = finetune.run(words(settings, lr_scheduler_kwargs="{min_lr: 1e-7}", dataset="nowhere.jsonl"))
    assert code == 2
    assert (
        "error: lr_scheduler_kwargs: lr_scheduler_type linear does not take min_lr" in capsys.readouterr().err
    )


def test_the_recipe_trains_with_a_least_learning_rate(settings):
    kwargs = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": "{min_lr: 1e-7}"}
    assert finetune.run(words(settings, **kwargs)) == 0
