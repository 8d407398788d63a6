"""The benchmarks run as a user runs them, on problems small enough for a test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from helpers.scored import small_model
from helpers.scripts import load_script

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = [
    "--tokens",
    "24",
    "--width",
    "8",
    "--vocabulary",
    "300",
    "--support",
    "4",
    "--order",
    "2",
    "--repeats",
    "1",
]


def run(script, *arguments, timeout=300):
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_losses_side_by_side(tmp_path):
    result = run("linear_losses.py", *TINY, "--json", tmp_path / "losses.json")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "losses.json").read_text())["results"][0]["rows"]
    by_case = {row["case"]: row for row in rows}
    assert {"3 products", "Hugging Face", "ours, weight 0", "marginal", "expected"} <= set(by_case)
    assert {"token, support 4, order 2", "token, full, order 4", "label smoothing", "EMO"} <= set(by_case)
    assert by_case["EMO"]["floor_seconds"] == pytest.approx(by_case["3 products"]["seconds"] * 4 / 3)
    assert all(row["seconds"] > 0 for row in rows)
    full, three = by_case["token, full, order 4"], by_case["3 products"]
    assert full["floor_seconds"] == pytest.approx(three["seconds"] * 10 / 3)
    assert by_case["ours, weight 0"]["against_weight_0"] == 1
    assert all(case in result.stdout for case in by_case)


@pytest.mark.slow
def test_sweep_draws_every_axis(tmp_path):
    result = run(
        "linear_losses.py", *TINY, "--sweep", "--plot", tmp_path / "p.png", "--json", tmp_path / "p.json"
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "p.json").read_text())["results"]
    assert [(r["axis"], r["support"]) for r in results if r["axis"] == "support"] == [
        ("support", k) for k in (1, 2, 4, 8)
    ]
    assert {r["axis"] for r in results} == {"vocabulary", "width", "tokens", "support"}


@pytest.mark.slow
def test_whole_step_with_every_loss(tmp_path):
    result = run(
        "training_step.py",
        "--shape",
        "2m",
        "--batch",
        1,
        "--length",
        8,
        "--repeats",
        1,
        "--json",
        tmp_path / "s.json",
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [row["case"].split(",")[0] for row in rows] == ["stock CE", "ours", "ours", "ours", "ours"]
    assert rows[0]["against_stock"] == 1
    assert all(row["tokens_per_second"] == pytest.approx(8 / row["seconds"]) for row in rows)


def test_logarithms_side_by_side(tmp_path):
    result = run("matrix_logarithm.py", "--width", 12, "--repeats", 1, "--json", tmp_path / "l.json")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "l.json").read_text())["rows"]
    cases = [f"{what}, {how}" for what in ("logarithm", "cross-entropy") for how in ("eigh", "rational")]
    assert [row["case"] for row in rows] == ["one product", *cases]
    assert rows[1]["speedup"] == rows[3]["speedup"] == 1
    assert all(0 < row["gradient_error"] < 1e-4 for row in rows[1:])


@pytest.mark.slow
def test_accuracy_of_the_losses(tmp_path):
    result = run("loss_accuracy.py", "--dtype", "float64", "float32", "--json", tmp_path / "a.json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert len({(row["case"], row["kind"]) for row in rows}) == 9 * 5
    for row in rows:
        limit = 1e-13 if row["dtype"] == "float64" else 2e-5
        assert all(error is None or error <= limit for error in row["errors"]), row
    assert (
        sum(None in row["errors"] for row in rows) == 2 * 5
    )  # the one case whose gradient to the weight vanishes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("linear_losses.py", ["--tokens", "0"], "expected a positive integer, got '0'"),
        ("linear_losses.py", ["--plot", "x.png"], "add --sweep"),
        ("linear_losses.py", ["--support", "64", "--vocabulary", "64"], "--support must be smaller"),
        ("linear_losses.py", ["--device", "gpu"], "'gpu' is no device; cpu or cuda, say"),
        ("training_step.py", ["--length", "1"], "--length must be at least 2"),
        ("matrix_logarithm.py", ["--shrinkage", "1"], "--shrinkage must be between 0 and 1"),
    ],
)
def test_wrong_arguments(script, arguments, message):
    result = run(script, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_likelihoods_agree_with_the_loss_of_transformers_and_the_harness(tmp_path):
    pytest.importorskip("lm_eval")
    model, data = small_model(tmp_path)
    words = ["--model", model, "--data", data, "--prompt", "plain", "--dtypes", "float32"]
    result = run("likelihood_agreement.py", *words, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.strip().splitlines()[-1])["results"]
    assert [row["way"] for row in found] == ["ours", "transformers' loss", "harness"]
    assert all(row["largest_difference"] < 1e-5 for row in found)
    assert all(row["nats_per_token"] > 1 for row in found)


@pytest.mark.parametrize("script", ["gpu_dry_run.py", "gpu_report.py", "kernel_resources.py"])
def test_figures_that_can_go_nowhere_are_not_measured(script, tmp_path):
    (tmp_path / "file").touch()
    result = run(script, "--json", tmp_path / "file" / "figures.json")
    assert result.returncode == 2
    assert "argument --json: cannot write" in result.stderr.splitlines()[-1]


def test_losses_of_images_plans(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "0.png").touch()
    given = ["--data", tmp_path, "--output", tmp_path / "runs"]
    result = run("image_losses.py", *given, "--plan")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "learning rates: 0 of 12 done"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("more", [(), ("--plan",)])
def test_losses_of_images_refuse_what_cannot_be_run(image_losses, tmp_path, monkeypatch, capsys, more):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "0.png").touch()
    (tmp_path / "page.html").write_text("<html>")

    def refusal(*words):
        given = ("--data", tmp_path, "--output", tmp_path / "runs", *words, *more)
        monkeypatch.setattr("sys.argv", ["image_losses.py", *map(str, given)])
        with pytest.raises(SystemExit) as ended:
            image_losses.main()
        assert ended.value.code == 2
        assert not (tmp_path / "runs" / "given.json").exists()  # a mistyped word spoils no folder
        return capsys.readouterr().err

    assert "an interval over seeds needs two at least" in refusal("--seeds", 1)
    assert "has no images at test/CLASS/" in refusal()
    assert "has no images at train/CLASS/" in refusal("--data", tmp_path / "nowhere")
    (tmp_path / "test").symlink_to(tmp_path / "train")
    assert "nowhere.yaml cannot be read" in refusal("--config", tmp_path / "nowhere.yaml")
    assert "page.html has no settings" in refusal("--config", tmp_path / "page.html")
    assert "page.html is no folder" in refusal("--output", tmp_path / "page.html")
    (tmp_path / "runs").mkdir()
    config = yaml.safe_load(image_losses.CONFIG.read_text())
    begun = {
        "data": str(tmp_path),
        "config": config,
        "search_epochs": 3,
        "held_out": 2000,
        "mixed_precision": "no",
    }
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "given.json").write_text(json.dumps(begun))
    said = refusal("--output", tmp_path / "begun")
    assert "was begun with other settings; search_epochs: 3 → 15" in said
    assert "another --output" in said


@pytest.fixture
def image_losses(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_script("benchmarks/image_losses.py")


@pytest.mark.parametrize(
    ("said", "exit_code", "is_trial", "goes_on"),
    [
        ("the loss is not finite", 2, True, True),
        ("the loss is not finite", 2, False, False),
        ("no such folder", 2, True, False),
        ("the loss is not finite", 1, True, False),
    ],
)
def test_a_trial_that_diverges_is_the_worst_and_other_faults_stop(
    image_losses, tmp_path, monkeypatch, said, exit_code, is_trial, goes_on
):
    good = "import json, pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(); (p / 'summary.json').write_text("
    programs = {
        "bad": f"import sys; print({said!r}); sys.exit({exit_code})",
        "good": good + "json.dumps({'monitor/knn_top1': 0.5}))",
    }
    monkeypatch.setattr(
        image_losses.Job,
        "command",
        property(lambda job: [sys.executable, "-c", programs[job.folder.name], str(job.folder)]),
    )
    jobs = [image_losses.Job("", tmp_path / name, (), is_trial) for name in programs]
    assert image_losses.run_all(jobs, 1, 1, []) == (0 if goes_on else exit_code)
    assert (jobs[1].summary is not None) == goes_on
    if goes_on:
        assert image_losses.best([({"name": job.folder.name}, job) for job in jobs]) == {"name": "good"}
        assert image_losses.run_all(jobs, 1, 1, []) == 0


@pytest.mark.slow
def test_losses_of_images_are_searched_trained_and_judged(tmp_path):
    """All 36 programs on images of noise; the second start finds everything done."""
    config = yaml.safe_load((BENCHMARKS.parent / "vision/configs/cifar10_cpu.yaml").read_text())
    config |= {"limit": 24, "epochs": 2, "batch_size": 8, "image_size": 8, "num_workers": 0}
    config |= {"embedding_dim": 8, "projector_dim": 8, "predictor_dim": 4}
    config["backbone_kwargs"] = {"channels": [4, 4, 8, 8]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("a", "b", "c"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    given = ["--data", tmp_path / "data", "--config", tmp_path / "tiny.yaml", "--output", tmp_path / "runs"]
    given += ["--seeds", 2, "--search_epochs", 2, "--held_out", 8]
    for _ in range(2):
        result = run("image_losses.py", *given, "--jobs", 2, timeout=1200)
        assert result.returncode == 0, result.stderr
    assert "judging: 12 of 12 done" in result.stdout
    found = json.loads((tmp_path / "runs/results.json").read_text())
    assert found["mixed_precision"] == "no"
    result = run("image_losses.py", *given, "--mixed_precision", "bf16")
    assert result.returncode == 2
    assert "was begun with other settings; mixed_precision: 'no' → 'bf16'" in result.stderr
    assert len(found["search"]) == 18
    assert all(len(values["linear"]) == 2 for values in found["final"].values())
    # Settings are chosen by images that are not test images.
    trial = next((tmp_path / "runs/search").glob("sim_siam*/recipe.yaml")).read_text()
    assert "eval_from_train: 8" in trial
