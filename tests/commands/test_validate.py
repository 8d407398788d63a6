"""`mce-llm validate`: what is in order, what is not, all at once, and nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import transformers

from helpers.recipes import save_chat_model
from helpers.validation import texts, validated
from mce_llm.data import train_tokenizer, write_jsonl

GOOD = {"question": "Tom has 3 apples and buys 5. How many?", "answer": "3 + 5 = 8\n#### 8"}


def test_a_recipe_in_order(command, recipe):
    found = validated(command, recipe(), "--gpus", 2, "--memory", 8)
    assert texts(found, "problem") == texts(found, "warning") == []
    data = found["data"]["train"]
    assert (data["examples"], data["kept"], data["truncated"], data["duplicates"]) == (40, 40, 0, 0)
    assert data["ends_trained"] == 40
    assert 0 < data["label_share"] < 1
    assert found["optimizer_steps"] == 10  # 40 rows of 8 a step, twice
    assert found["memory"]["recommended"] == "ddp"
    step = found["trial_step"]
    assert step["loss"] == pytest.approx(step["cross_entropy"] + step["matrix_cross_entropy"])
    assert step["without_gradient"] == step["not_finite"] == []
    assert [fetch["state"] for fetch in found["fetches"]] == ["local", "local"]


def test_the_report(command, recipe):
    """Samples with the trained tokens in brackets, the counts, and a summary in one line."""
    result = command("validate", recipe(), columns=80)
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "Answer:⟦ " in result.stdout
    assert "<|endoftext|>⟧" in result.stdout
    assert result.stdout.rstrip().splitlines()[-1].startswith("ready: ")
    assert "optimizer states" in result.stdout  # the totals, without GPUs to judge by


def test_memory_is_tight_or_the_host_s(command, recipe, place):
    """A 7B model in float32 on one GPU needs 151 GiB of the host; what leaves less than 5 % is a warning."""
    path = recipe(
        model_name_or_path=str(place / "big"),
        tokenizer_name_or_path=str(place / "tokenizer"),
        model_check=False,
    )
    words = [path, "--gpus", 1, "--memory", 24]
    found = validated(command, *words, code=1)  # its weights are missing
    assert "memory: zero3_offload needs 151 GiB of host memory" in "\n".join(texts(found, "warning"))
    assert "memory: use_cpu is true in the recipe: the figures are for a run on GPUs" in "\n".join(
        texts(found, "ok")
    )
    assert found["memory"]["verdicts"]["zero3_offload"] == "fits"
    found = validated(command, *words, "--host-memory", 100, code=1)
    (problem,) = [text for text in texts(found, "problem") if text.startswith("memory")]
    assert (
        "no engine fits on 1 × 24 GiB with 100 GiB of host memory; zero3_offload needs 151 GiB of it"
        in problem
    )
    peak = found["memory"]["peak_bytes"]["zero3_offload"] / 2**30
    found = validated(command, path, "--gpus", 1, "--memory", 1.01 * peak, "--host-memory", 500, code=1)
    assert "memory: zero3_offload is tight" in "\n".join(texts(found, "warning"))


def test_all_problems_at_once(command, recipe, place):
    """Data, model, batch, memory, settings and output together; none hides another."""
    out = Path(str(place)) / "finished"
    out.mkdir(exist_ok=True)
    (out / "train_results.json").write_text("{}")
    write_jsonl([GOOD, {"question": "How many?"}], place / "unanswered.jsonl")
    path = recipe(
        dataset=str(place / "unanswered.jsonl"),
        model_name_or_path=str(place / "big"),
        tokenizer_name_or_path=str(place / "tokenizer"),
        eval_strategy="epoch",
        output_dir=str(out),
        max_length=4096,
    )
    found = validated(command, path, "--gpus", 3, "--memory", 4, code=1)
    problems = "\n".join(texts(found, "problem"))
    for part in (
        "model: " + str(place / "big"),
        "train data: ",
        "'answer' is missing",
        "batch: total_batch_size 8 is not a multiple of 6",
        "memory: no engine fits on 3 × 4 GiB",
        "eval_strategy: it needs eval_dataset",
        "holds a finished run (train_results.json)",
    ):
        assert part in problems
    assert "max_length: 4,096 is beyond the 2,048 positions" in "\n".join(texts(found, "warning"))
    assert sorted(path.name for path in out.iterdir()) == ["train_results.json"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_name_or_path": "{place}/nowhere"}, "model: {place}/nowhere: there is no such directory"),
        ({"model_name_or_path": "some/model"}, "model: some/model: not in the hub's cache"),
        ({"dataset": "{place}/dta.jsonl"}, "no such file (did you mean 'data.jsonl'?)"),
        ({"dataset": "some/data"}, "dataset: some/data: not in the hub's cache"),
        ({"tokenizer_name_or_path": "{place}/nowhere"}, "tokenizer: {place}/nowhere: there is no such"),
        ({"max_length": 8}, "none of 40 examples can be trained on; raise max_length"),
        ({"lora_r": 2, "lora_target_modules": "q_prj"}, "adapters: lora_target_modules 'q_prj'"),
        ({"lora_r": 2, "lora_target_modules": "q_proj,lm_head"}, "adapter on the output head"),
        ({"prompt": "chat"}, "needs a chat template"),
        ({"optim": "lomo"}, "memory: no arithmetic for optim 'lomo'"),
        (
            {"use_liger_kernel": True},
            "settings: use_liger_kernel replaces the forward that computes the loss",
        ),
    ],
)
def test_one_thing_wrong(changed, message, command, recipe, place, monkeypatch):
    """A problem each, exit code 1, and never a traceback."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    changed = {k: v.format(place=place) if isinstance(v, str) else v for k, v in changed.items()}
    found = validated(command, recipe(**changed), code=1)
    problems = texts(found, "problem")
    assert any(message.format(place=place) in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--max_lenght", "9"], "did you mean 'max_length'"),
        (["--lora_alpha", "3", "--matrix_shrinkage", "2"], "without lora_r"),
        (["--total_batch_size", "3"], "total_batch_size must be a multiple of 2"),
    ],
)
def test_what_cannot_be_parsed_has_exit_code_two(overrides, message, command, recipe):
    result = command("validate", recipe(), *overrides)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr_scheduler_kwargs": {"min_lr": 1e-7}}, "lr_scheduler_type linear does not take min_lr"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "needs lr_scheduler_kwargs: {num_decay_steps: …}"),
        ({"optim_args": "momentum=0.9"}, "optim adamw_torch_fused does not read momentum"),
        ({"optim": "lomo"}, "optim lomo: ImportError"),
    ],
)
def test_optimizers_and_schedules_that_cannot_be_made(changed, message, command, recipe):
    found = validated(command, recipe(**changed), code=1)
    (problem,) = [text for text in texts(found, "problem") if text.startswith("optimizer: ")]
    assert message in problem


def test_warnings_do_not_stop_a_run(command, recipe, place):
    rows = [json.loads(line) for line in (place / "data.jsonl").read_text().splitlines()]
    write_jsonl([*rows, *rows[:5]], place / "worn.jsonl")
    path = recipe(
        dataset=str(place / "worn.jsonl"),
        eval_dataset=str(place / "held_out.jsonl"),
        eval_split="train",
        total_batch_size=2,
    )
    found = validated(command, path)
    assert texts(found, "problem") == []
    warnings = "\n".join(texts(found, "warning"))
    assert "5 records are there more than once" in warnings
    assert "2 of its examples are in the training data too" in warnings


def test_records_that_training_refuses_are_counted_and_named(command, recipe, place):
    rows = [json.loads(line) for line in (place / "data.jsonl").read_text().splitlines()]
    write_jsonl(
        [*rows, {"question": " ", "answer": "#### 1"}, {**rows[0], "answer": ""}], place / "holes.jsonl"
    )
    (problem,) = texts(validated(command, recipe(dataset=str(place / "holes.jsonl")), code=1), "problem")
    for part in ("2 of 42 records", "line 41: 'question' is empty", "line 42: 'answer'"):
        assert part in problem


def test_answers_that_are_cut_do_not_learn_to_end(command, recipe):
    lengths = validated(command, recipe())["data"]["train"]["lengths"]
    short = int(lengths["50"])
    found = validated(command, recipe(), "--max_length", short)
    data = found["data"]["train"]
    assert 0 < data["truncated"] < 40
    assert data["ends_trained"] == data["kept"] - data["truncated"]
    assert any("are cut at max_length" in text for text in texts(found, "warning"))


def test_nothing_is_written(command, recipe, place, tmp_path):
    """Neither output_dir nor anything beside the recipe, in a run that goes all the way."""
    path = recipe(packing=True, lora_r=2)
    before = sorted(tmp_path.rglob("*")), sorted(place.rglob("*"))
    validated(command, path)
    assert (sorted(tmp_path.rglob("*")), sorted(place.rglob("*"))) == before


def test_a_head_that_the_loss_cannot_read_is_reported(command, recipe, place):
    target = place / "bert"
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.BertForMaskedLM(config).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(place / "tokenizer" / name, target)
    found = validated(command, recipe(model_name_or_path=str(target)), code=1)
    assert any("trial step" in text or "model" in text for text in texts(found, "problem"))
    assert any("both directions" in text or "not a causal" in text for text in texts(found, "problem"))


def test_few_examples_are_looked_at_where_few_are_asked_for(command, recipe):
    found = validated(command, recipe(), "--max-examples", 7, "--samples", 3)
    assert found["data"]["train"]["examples"] == 7
    assert found["data"]["train"]["limited"]
    assert len(found["samples"]) == 3
    assert found["optimizer_steps"] is None  # they cannot be counted


def test_checkpoints_in_the_way(command, recipe, tmp_path):
    (tmp_path / "out" / "checkpoint-5").mkdir(parents=True)
    assert any(
        "1 checkpoint: the run would go on" in t for t in texts(validated(command, recipe()), "warning")
    )
    found = validated(command, recipe(resume=False), code=1)
    assert any("resume is false" in text for text in texts(found, "problem"))


def test_examples_beyond_the_positions(command, recipe, place):
    """A limit that is never reached is fine; an example that needs more positions is not."""
    found = validated(command, recipe(max_length=1024))
    assert any("1,024 is beyond the 512 positions" in text for text in texts(found, "warning"))
    long = {"question": "How many? " * 300, "answer": "3 + 5 = 8\n#### 8"}
    write_jsonl([GOOD, long], place / "long.jsonl")
    path = recipe(dataset=str(place / "long.jsonl"), max_length=4096, total_batch_size=2)
    problems = texts(validated(command, path, code=1), "problem")
    assert any("max_length: max_length lets in train examples of up to" in text for text in problems)


def test_where_answers_end(command, recipe, place, tmp_path):
    """A base model that stops elsewhere than the chat template ends a turn: both are said."""
    found = validated(command, recipe())
    assert any(
        "end of answers: '<|endoftext|>' (0), at which generation stops already" in text
        for text in texts(found, "ok")
    )
    model = save_chat_model(place, tmp_path / "base")
    found = validated(command, recipe(model_name_or_path=str(model), prompt="chat"))
    said = next(text for text in texts(found, "ok") if text.startswith("end of answers"))
    assert "'<|im_end|>' (" in said
    assert "as it is stops at '<|endoftext|>' (0)" in said


@pytest.mark.parametrize(
    ("changed", "warned"),
    [
        ({"dtype": "bfloat16", "learning_rate": 1e-5}, True),
        ({"dtype": "bfloat16", "learning_rate": 1e-2}, False),
        ({"dtype": "float32", "learning_rate": 1e-5}, False),
        ({"dtype": "bfloat16", "learning_rate": 1e-5, "lora_r": 2}, False),
    ],
)
def test_updates_that_bfloat16_would_lose(changed, warned, command, recipe):
    warnings = texts(validated(command, recipe(**changed)), "warning")
    assert any("an update of that size is rounded away" in text for text in warnings) == warned


def test_fewer_rows_than_a_step(command, recipe):
    warnings = texts(validated(command, recipe(limit=3)), "warning")
    assert any("3 rows are fewer than the 8 of an optimizer step" in text for text in warnings)


def test_another_tokenizer_than_the_models_own(command, recipe, place, tmp_path):
    """Ids that fit and mean something else."""
    other = train_tokenizer(["zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich " * 4], vocab_size=280)
    other.save_pretrained(tmp_path / "other")
    warnings = texts(validated(command, recipe(tokenizer_name_or_path=str(tmp_path / "other"))), "warning")
    assert any("is not the tokenizer of" in text and "have another id or none" in text for text in warnings)
    same = texts(validated(command, recipe(tokenizer_name_or_path=str(place / "tokenizer"))), "warning")
    assert not any("is not the tokenizer of" in text for text in same)


def save(config, target, place):
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(place / "tokenizer" / name, target)
    return str(target)


def test_packing_that_leaks_is_reported(command, recipe, place, tmp_path):
    config = transformers.OPTConfig(
        vocab_size=300,
        hidden_size=16,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=16,
    )
    name = save(config, tmp_path / "opt", place)
    found = validated(command, recipe(model_name_or_path=name, packing=True), code=1)
    (problem,) = texts(found, "problem")
    assert problem.startswith("model check: OPTForCausalLM: packing: examples in one row see each other")
    assert problem.endswith("set packing: false, or take a collator that pads")
    validated(command, recipe(model_name_or_path=name))


def test_a_check_that_is_left_out_is_reported(command, recipe):
    found = validated(command, recipe(model_check=False))
    assert any("taken on trust" in text for text in texts(found, "warning"))


def test_a_model_without_attention_is_in_order(command, recipe, place, tmp_path):
    config = transformers.MambaConfig(vocab_size=300, hidden_size=16, state_size=4, num_hidden_layers=2)
    found = validated(command, recipe(model_name_or_path=save(config, tmp_path / "mamba", place)))
    assert texts(found, "problem") == []
    assert found["trial_step"]["without_gradient"] == []
    assert texts(found, "warning") == [
        "memory: mamba has no attention, and what its layers keep for the backward pass is not known here; measure a "
        "short run"
    ]


@pytest.mark.parametrize("lora_r", [0, 2])
def test_a_multimodal_model_is_trained_on_text(command, recipe, place, tmp_path, lora_r):
    """Of Mistral 3, which AutoModelForCausalLM does not know, the language model; the tower gets no adapters either."""
    config = transformers.Mistral3Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": 300,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_id=299,
    )
    target = tmp_path / "mistral3"
    transformers.Mistral3ForConditionalGeneration(config).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(place / "tokenizer" / name, target)
    found = validated(command, recipe(model_name_or_path=str(target), lora_r=lora_r, packing=True))
    assert texts(found, "problem") == []
    assert found["trial_step"]["without_gradient"] == []
