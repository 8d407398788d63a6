"""Saved adapters load with stock peft, and merged models with stock transformers, without this package."""

import functools
import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from helpers.adapters import EVERY, HEADS, adapted_model
from helpers.models import make_model
from helpers.recipes import words
from helpers.scripts import load_script
from mce_llm.cli import app
from mce_llm.data import train_tokenizer
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.loading import load_model_and_tokenizer
from mce_llm.finetuning import merging
from mce_llm.finetuning.merging import MergeError, merge_adapters

finetune = load_script("recipes/finetune.py")
main, run = finetune.main, finetune.run

IDS = torch.arange(3, 40).view(1, -1)

# Importing this package, or peft, is made impossible; then the merged models are read and their logits saved.
STRANGER = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *where):
        hidden = name.partition(".")[0] in ("mce_llm", "peft")
        return None if hidden else self.finder.find_spec(name, *where)

sys.meta_path[:] = map(Without, sys.meta_path)
try:
    import mce_llm
except ModuleNotFoundError:
    pass
else:
    sys.exit("mce_llm can be imported")
import torch
from transformers import AutoModelForCausalLM
logits = {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits[folder] = model(input_ids=torch.arange(3, 40).view(1, -1)).logits
torch.save(logits, sys.argv[1])
"""


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """The base model of each family, with a tokenizer of as many tokens as it has rows."""
    folder = tmp_path_factory.mktemp("bases")
    tokenizer = train_tokenizer(["one and one is two"], vocab_size=258)
    for family in ("llama", "llama-tied"):
        make_model(family, vocab_size=258).save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)
    return folder


Case = namedtuple("Case", "adapter merged result logits")


def save_adapted(bases, variant, head, folder):
    base = AutoModelForCausalLM.from_pretrained(bases / HEADS[head][0])
    model = adapted_model(variant, head, base, size=0.2).eval()
    model.save_pretrained(folder)
    with torch.no_grad():
        return model(input_ids=IDS).logits


# Each variant and each head once; all pairs with the slow tests.
SOME = [("lora", "plain"), ("dora", "tied"), ("rslora", "saved"), ("dora-rslora", "saved-tied")]
PAIRS = [pytest.param(*pair, marks=() if pair in SOME else pytest.mark.slow) for pair in EVERY]


@pytest.fixture(scope="module")
def case(bases, tmp_path_factory):
    """A variant on a head: saved, and merged by the command's code; made when it is first asked for."""

    @functools.cache
    def make(variant, head):
        folder = tmp_path_factory.mktemp(f"{variant}-{head}")
        logits = save_adapted(bases, variant, head, folder / "adapter")
        result = merge_adapters(folder / "adapter", folder / "merged")
        return Case(folder / "adapter", folder / "merged", result, logits)

    return make


@pytest.mark.parametrize("pairs", [SOME, pytest.param(EVERY, marks=pytest.mark.slow)], ids=["some", "every"])
def test_stock_transformers_reads_the_merged_models(case, pairs, tmp_path):
    """In a process that has neither this package nor peft."""
    made = [case(*pair) for pair in pairs]
    command = [
        sys.executable,
        "-c",
        STRANGER,
        str(tmp_path / "logits.pt"),
        *[str(one.merged) for one in made],
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    read = torch.load(tmp_path / "logits.pt")
    for one in made:
        largest = one.logits.abs().max().item()
        torch.testing.assert_close(read[str(one.merged)], one.logits, rtol=1e-5, atol=1e-5 * largest)
        assert one.result.deviation < 1e-5
        assert {path.suffix for path in one.merged.iterdir()} <= {".json", ".safetensors", ".jinja", ".md"}


@pytest.mark.parametrize(("variant", "head"), PAIRS)
def test_stock_peft_and_the_evaluator_read_the_adapter(case, variant, head):
    one = case(variant, head)
    stock = AutoPeftModelForCausalLM.from_pretrained(one.adapter).eval()
    evaluated, _ = load_model_and_tokenizer(str(one.adapter))
    with torch.no_grad():
        assert torch.equal(stock(input_ids=IDS).logits, one.logits)
        assert torch.equal(evaluated(input_ids=IDS).logits, one.logits)
    assert {path.name for path in one.adapter.iterdir()} - {"README.md"} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize(("variant", "head"), SOME)
def test_a_tied_model_stays_tied(case, variant, head):
    merged = case(variant, head).merged
    config = json.loads((merged / "config.json").read_text())
    assert config["tie_word_embeddings"] == ("tied" in head)
    assert ("lm_head.weight" in load_file(merged / "model.safetensors")) != ("tied" in head)


def test_a_run_that_merges(folder, settings):
    main(words(settings, lora_r=2, use_dora="true", lora_modules_to_save="lm_head", merge_adapters="true"))
    output = settings["output_dir"]
    weights = load_file(output / "adapter_model.safetensors")
    assert any("lora_magnitude_vector" in name for name in weights)
    assert "base_model.model.lm_head.weight" in weights
    adapted = AutoPeftModelForCausalLM.from_pretrained(output).eval()
    merged = AutoModelForCausalLM.from_pretrained(output / "merged").eval()
    before = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    with torch.no_grad():
        expected, other = adapted(input_ids=IDS).logits, before(input_ids=IDS).logits
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert (expected - other).abs().max() > 1e-2
    evaluated, tokenizer = load_model_and_tokenizer(str(output / "merged"))
    assert not hasattr(evaluated, "peft_config")
    assert len(tokenizer) == 300
    assert run(words(settings, lora_r=2)) == 2  # a finished run
    shutil.rmtree(output / "merged")
    assert not [path for path in output.rglob("*.bin") if path.name != "training_args.bin"]


def test_what_an_earlier_run_merged_is_replaced(settings, capsys):
    (settings["output_dir"] / "merged").mkdir(parents=True)
    changed = {"lora_r": 2, "merge_adapters": "true"}
    assert run(words(settings, **changed)) == 2
    assert "holds a finished run (merged)" in capsys.readouterr().err
    assert run(words(settings, **changed, overwrite="true")) == 0
    assert (settings["output_dir"] / "merged" / "model.safetensors").exists()


@pytest.fixture
def adapter(bases, tmp_path):
    save_adapted(bases, "lora", "plain", tmp_path / "adapter")
    return tmp_path / "adapter"


def change(path, **changed):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changed}))


def lose_a_weight(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    del weights["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
    save_file(weights, adapter / "adapter_model.safetensors")


def poison(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, adapter / "adapter_model.safetensors")


def pickle_it(adapter):
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (
            lambda a: (a / "adapter_config.json").unlink(),
            r"no adapter_config.json \(found: README.md, adapter_model",
        ),
        (
            lambda a: (a / "adapter_config.json").write_text("{"),
            "adapter_config.json cannot be read: JSONDecode",
        ),
        (lambda a: (a / "adapter_config.json").write_text("[]"), "expected a JSON object"),
        (lambda a: change(a / "adapter_config.json", base_model_name_or_path=None), "give it with --base"),
        (
            lambda a: change(a / "adapter_config.json", base_model_name_or_path="./gone"),
            "base model: ./gone: there is no such directory; give its place with --base",
        ),
        (lambda a: (a / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors$"),
        (pickle_it, "adapter_model.bin is a pickle, which can run code"),
        (
            lambda a: (a / "adapter_model.safetensors").write_bytes(b"ab"),
            "cannot be merged into .*SafetensorError",
        ),
        (lose_a_weight, "cannot be merged .*missing adapter keys.*up_proj.lora_B"),
        (poison, "cannot be merged .*NaN"),
        (lambda a: change(a / "adapter_config.json", r=3), "cannot be merged .*size mismatch"),
        (lambda a: change(a / "adapter_config.json", peft_type="LARO"), "cannot be merged .*LARO"),
    ],
)
def test_adapters_that_cannot_be_merged(adapter, tmp_path, damage, pattern):
    damage(adapter)
    with pytest.raises(MergeError, match=pattern):
        merge_adapters(adapter, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_evaluation_refuses_an_adapter_with_a_weight_missing(adapter):
    lose_a_weight(adapter)
    with pytest.raises(EvaluationError, match="missing adapter keys"):
        load_model_and_tokenizer(str(adapter))


def test_problems_are_listed_together(adapter, tmp_path):
    (tmp_path / "merged").mkdir()
    with pytest.raises(MergeError) as caught:
        merge_adapters(adapter, tmp_path / "merged", base="./gone", dtype="float23")
    for part in (
        "merged exists",
        "./gone: there is no such directory",
        "got 'float23' (did you mean 'float32'?)",
    ):
        assert part in str(caught.value)


def test_a_quantised_base_is_refused(adapter, bases, tmp_path):
    shutil.copytree(bases / "llama", tmp_path / "base")
    change(
        tmp_path / "base" / "config.json",
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
    )
    with pytest.raises(MergeError, match="is quantised, and merging would round the adapters away"):
        merge_adapters(adapter, tmp_path / "merged", base=str(tmp_path / "base"))


def test_another_base_is_refused(adapter, bases, tmp_path):
    shutil.copytree(bases / "llama", tmp_path / "base")
    make_model(hidden_size=32, vocab_size=258).save_pretrained(tmp_path / "base")
    with pytest.raises(MergeError, match=r"cannot be merged into .*size mismatch"):
        merge_adapters(adapter, tmp_path / "merged", base=str(tmp_path / "base"))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:Setting `save_embedding")
def test_an_adapter_on_shared_embeddings_is_refused(bases, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(bases / "llama-tied")
    get_peft_model(base, LoraConfig(r=2, target_modules=["embed_tokens"])).save_pretrained(
        tmp_path / "adapter"
    )
    with pytest.raises(MergeError, match="on embeddings that the output head shares"):
        merge_adapters(tmp_path / "adapter", tmp_path / "merged")


def test_a_merge_that_changes_the_model_is_refused(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "_TOLERANCE", {torch.float32: 0.0})
    with pytest.raises(MergeError, match="would not be the adapted one"):
        merge_adapters(adapter, tmp_path / "merged")


def test_a_full_disk_is_noticed_before_writing(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(9, 9, 1000))
    with pytest.raises(MergeError, match=r"takes 0\.00 GB and .* has 0\.00 GB free"):
        merge_adapters(adapter, tmp_path / "merged")


def test_a_write_that_fails_leaves_nothing(adapter, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
    with pytest.raises(MergeError, match=r"cannot write to .*No space left"):
        merge_adapters(adapter, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_command(adapter, tmp_path, dtype):
    merged = tmp_path / "merged"
    done = CliRunner().invoke(app, ["merge", str(adapter), str(merged), "--dtype", dtype])
    assert done.exit_code == 0, done.output
    assert re.search(
        rf"merged into .*llama: [\d,]+ weights, 0\.00 GB in {dtype}, in .*merged; logits", done.output
    )
    assert {value.dtype for value in load_file(merged / "model.safetensors").values()} == {
        getattr(torch, dtype)
    }
    again = CliRunner().invoke(app, ["merge", str(adapter), str(merged)])
    assert again.exit_code == 2
    assert "merged exists; name a folder that does not" in again.output


HOLD = """
import sys
from pathlib import Path
from mce_llm.running.folder import hold_folder
hold_folder(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_at_work_in_the_folder_around_the_output(case, tmp_path):
    """Its end, or its start anew, would remove or overwrite what is merged into it meanwhile."""
    run_folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        adapter = case("lora", "plain").adapter
        done = CliRunner().invoke(app, ["merge", str(adapter), str(run_folder / "merged")])
        assert done.exit_code == 2
        assert (
            f"another run is writing to {run_folder} at this moment (process {process.pid} on" in done.output
        )
        assert [path.name for path in run_folder.iterdir()] == ["_LOCK"]
        process.stdin.close()
    merge_adapters(adapter, run_folder / "merged")
    assert [path.name for path in run_folder.iterdir()] == ["merged"]


def test_cards_of_a_run_with_adapters(settings, capsys):
    """Of its checkpoints, of the adapters, and of the merged model."""
    settings |= {"lora_r": 2, "merge_adapters": "true", "save_strategy": "steps", "save_steps": 1, "seed": 5}
    main(words(settings))
    output = settings["output_dir"]
    cards = {
        name: ModelCard.load(output / name / "README.md")
        for name in (".", "checkpoint-1", "checkpoint-2", "merged")
    }
    for name, card in cards.items():
        assert "More Information Needed" not in card.text, name
        assert "| seed | `5` |" in card.text
        assert "| `weight` | `1.0` | λ |" in card.text
        assert "`data.jsonl`" in card.text
    assert cards["merged"].data.library_name == "transformers"
    assert {cards[name].data.library_name for name in (".", "checkpoint-1", "checkpoint-2")} == {"peft"}
    assert "| optimizer steps | `1 of 2` |" in cards["checkpoint-1"].text
    merged = cards["merged"].text
    assert "the adapters in `out` merged into the weights of `model`" in merged
    assert "PeftModel" not in merged
    assert 'AutoModelForCausalLM.from_pretrained("path/to/this/folder")' in merged
    assert merged.count("## How to load it") == 1


def test_the_card_of_merged_adapters_from_elsewhere(case):
    """peft's unfilled template says nothing, and nothing is made of it."""
    card = (case("lora", "plain").merged / "README.md").read_text()
    assert "they came without a card of mce-llm" in card
    assert "More Information Needed" not in card
    assert "logits differ by" in card
