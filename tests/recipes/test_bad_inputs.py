"""What a run is pointed at by mistake, and the message that each mistake gets: exit code 2, no traceback."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from helpers.recipes import run_script, words
from helpers.scripts import load_script
from mce_llm.data import write_jsonl
from mce_llm.lm import UncheckedModelWarning

finetune = load_script("recipes/finetune.py")
run = finetune.run

GOOD = {"question": "Tom has 3 apples and buys 5. How many?", "answer": "3 + 5 = 8\n#### 8"}
_ENCODER = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}


@pytest.fixture
def place(folder, tmp_path):
    """A folder with one of each kind of mistake."""
    place = tmp_path / "place"
    shutil.copytree(folder / "model", place / "nan")
    weights = load_file(place / "nan" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, place / "nan" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(folder / "model", place / "truncated")
    path = place / "truncated" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    shutil.copytree(folder / "model", place / "small")
    config = json.loads((place / "small" / "config.json").read_text()) | {"vocab_size": 200}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).save_pretrained(place / "small")
    bert = transformers.BertConfig(**_ENCODER, num_attention_heads=2)
    t5 = transformers.T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    opt = transformers.OPTConfig(**_ENCODER, ffn_dim=16, num_attention_heads=2, word_embed_proj_dim=16)
    bart = transformers.BartConfig(
        vocab_size=300,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
    )
    for model in (
        transformers.BertForMaskedLM(bert),
        transformers.T5ForConditionalGeneration(t5),
        transformers.OPTForCausalLM(opt),
        transformers.BartForCausalLM(bart),
    ):
        target = place / model.config.model_type
        model.save_pretrained(target)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(folder / "model" / name, target)
    (place / "text").mkdir()
    (place / "text" / "readme.txt").write_text("no model")
    (place / "no_tokenizer").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / "model" / name, place / "no_tokenizer")
    (place / "empty.jsonl").write_text("")
    (place / "broken.jsonl").write_text(json.dumps(GOOD) + '\n{"question": oops\n')
    write_jsonl([GOOD, {"question": "How many?"}], place / "unanswered.jsonl")
    write_jsonl([GOOD] * 4, place / "good.jsonl")
    return place


@pytest.mark.parametrize(
    ("changed", "pattern"),
    [
        ({"dataset": "{place}/godo.jsonl"}, "no such file (did you mean 'good.jsonl'?)"),
        ({"dataset": "{place}/empty.jsonl"}, "the file is empty"),
        ({"dataset": "{place}/broken.jsonl"}, "1 of 2 lines are not valid JSON"),
        ({"dataset": "{place}/unanswered.jsonl"}, "line 2: 'answer' is missing"),
        (
            {"dataset": "{place}/good.jsonl", "columns": "{question: qestion, response: answer}"},
            "no column 'qestion' for the question (did you mean 'question'?)",
        ),
        ({"max_length": 8}, "none of the 60 examples can be used with max_length=8"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "eval_strategy needs eval_dataset"),
        (
            {"model_name_or_path": "{place}/nan"},
            "1 weight of '{place}/nan' is not finite (first: model.layers.1",
        ),
        (
            {"model_name_or_path": "{place}/truncated"},
            "cannot load a causal language model from '{place}/truncated'",
        ),
        ({"model_name_or_path": "{place}/text"}, "is not a model: it has no config.json (found: readme.txt)"),
        ({"model_name_or_path": "{place}/nowhere"}, "{place}/nowhere: there is no such directory"),
        ({"model_name_or_path": "{place}/good.jsonl"}, "is a file; give the directory of a model"),
        ({"model_name_or_path": "{place}/no_tokenizer"}, "cannot load a tokenizer from"),
        (
            {"model_name_or_path": "{place}/small"},
            "tokenizer: it has ids up to 299, the model 200 embeddings; set resize_embeddings: true",
        ),
        ({"model_name_or_path": "{place}/bert"}, "BertLMHeadModel attends in both directions"),
        ({"model_name_or_path": "{place}/t5"}, "Unrecognized configuration class"),
        ({"model_name_or_path": "{place}/bart"}, "BartForCausalLM: it does not shift the labels"),
        (
            {"model_name_or_path": "{place}/opt", "packing": "true"},
            "OPTForCausalLM: packing: examples in one row see each other",
        ),
        (
            {
                "model_name_or_path": None,
                "model_config": '{"model_type": "lama"}',
                "tokenizer_name_or_path": "{folder}/tokenizer",
            },
            "cannot make a model from model_config",
        ),
        (
            {"lora_r": 4, "lora_target_modules": "q_proj,lm_head"},
            "puts an adapter on the output head lm_head",
        ),
        ({"lora_r": 4, "lora_target_modules": "wq"}, "lora_target_modules 'wq': "),
        ({"output_dir": "{place}/good.jsonl"}, "is a file; name a directory"),
        ({"matrix_weight": -1, "matrix_shrinkage": 1.2}, "shrinkage must be in [0, 1), got 1.2"),
        ({"matrix_wieght": 1}, "unknown setting 'matrix_wieght' (did you mean 'matrix_weight'?)"),
    ],
)
@pytest.mark.filterwarnings("ignore:If you want to use `BertLMHeadModel` as a standalone")
def test_mistakes(place, folder, settings, capsys, changed, pattern):
    def fill(value):
        return str(value).replace("{place}", str(place)).replace("{folder}", str(folder))

    changed = {name: value if value is None else fill(value) for name, value in changed.items()}
    assert run(words(settings, **changed)) == 2
    message = capsys.readouterr().err
    assert fill(pattern) in message[message.index("error: ") :]


def test_packing_that_leaks_is_one_message(place, settings):
    """Before data are read and weights are loaded, with what to do."""
    result = run_script(words(settings, model_name_or_path=place / "opt", packing="true"))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(
        "error: OPTForCausalLM: packing: examples in one row see"
    )
    assert result.stderr.rstrip().endswith("set packing: false, or take a collator that pads")
    assert "Traceback" not in result.stderr
    assert "train data" not in result.stdout


def test_the_same_model_without_packing_is_trained(place, settings):
    assert run(words(settings, model_name_or_path=place / "opt")) == 0


def test_leaving_the_check_out_is_loud(place, settings):
    with pytest.warns(UncheckedModelWarning, match="model_check is false: .* keeps packed examples apart"):
        assert (
            run(words(settings, model_name_or_path=place / "opt", packing="true", model_check="false")) == 0
        )


def test_the_script_itself_explains(place, settings):
    result = run_script(words(settings, dataset=place / "empty.jsonl"))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {place}/empty.jsonl: the file is empty")
    assert "Traceback" not in result.stderr


def test_no_write_permission(settings, unwritable, capsys):
    assert run(words(settings, output_dir=unwritable)) == 2
    assert "error: cannot write to output_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "the disk is full: OSError"),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
            "the disk is full",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "lower per_device_train_batch_size",
        ),
    ],
)
def test_full_disk_and_full_memory(settings, monkeypatch, capsys, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("mce_llm.lm.MatrixTrainer.train", fail)
    assert run(words(settings)) == 2
    assert message in capsys.readouterr().err


def test_other_errors_keep_their_traceback(settings, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a defect")

    monkeypatch.setattr("mce_llm.lm.MatrixTrainer.train", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        run(words(settings))
