"""A cluster on this machine: stand-ins for ssh, srun and scontrol, and commands started among them."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.recipes import RECIPES
from helpers.waiting import wait_until

CLUSTER = RECIPES / "cluster"
REPOSITORY = RECIPES.parent

# A shell elsewhere knows nothing of the environment here.
SSH = """#!/usr/bin/env bash
while [[ $1 == -o ]]; do shift 2; done
echo "$1" >> "$(dirname "$0")/ssh_hosts"
shift
exec env -i HOME="$HOME" PATH=/usr/bin:/bin bash -c "$*"
"""
SRUN = """#!{python}
import os, subprocess, sys, threading, time
count = int(sys.argv[sys.argv.index("--nodes") + 1])
command = sys.argv[sys.argv.index("bash") :]
tasks = [
    subprocess.Popen(command, stdin=subprocess.PIPE, env={{**os.environ, "SLURM_NODEID": str(rank)}}, text=True)
    for rank in range(count)
]
def broadcast():
    for line in sys.stdin:
        for task in tasks:
            task.stdin.write(line)
            task.stdin.flush()
    for task in tasks:
        task.stdin.close()
threading.Thread(target=broadcast, daemon=True).start()
while any(task.poll() is None for task in tasks):
    if any(task.poll() for task in tasks):  # --kill-on-bad-exit
        time.sleep(1)
        for task in tasks:
            task.terminate()
    time.sleep(0.1)
os._exit(max(task.returncode for task in tasks))
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
    show) printf '127.0.0.1\\nlocalhost\\n' ;;
    requeue) echo "$2" >> "$(dirname "$0")/requeued" ;;
esac
"""
# Stands for accelerate: starts one process in a session of its own, and kills it when it gets a signal itself.
LAUNCHER = """#!{python}
import json, os, signal, subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", {worker!r}, *sys.argv[1:]], start_new_session=True)
def end(*_):
    worker.kill()
    print("launcher ended", flush=True)
    os._exit(1)
signal.signal(signal.SIGTERM, end)
os._exit(1 if worker.wait() else 0)
"""
WORKER = """
import json, os, pathlib, signal, sys, time
def number(name, otherwise):
    return int(sys.argv[sys.argv.index(name) + 1]) if name in sys.argv else otherwise
rank, machines = number("--machine_rank", 0), number("--num_machines", 1)
place = pathlib.Path(os.environ.get("HF_HOME", "."))
def save(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(0.3)
    print("saved", flush=True)
    (place / f"saved-{rank}").touch()
    # As the processes of the recipe, which leave together.
    while len([*place.glob("saved-*"), *place.glob("fail-*")]) < machines:
        time.sleep(0.05)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print(json.dumps({"words": sys.argv[1:], "environment": dict(os.environ)}), flush=True)
(place / f"up-{rank}").touch()
while not (place / f"fail-{rank}").exists() and not (place / "finish").exists():
    time.sleep(0.05)
sys.exit(7 if (place / f"fail-{rank}").exists() else 0)
"""


def program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def _listen():
    """Under nohup, or in the background of a script, the tests ignore signals; a shell could not undo that for itself."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def place(tmp_path):
    """A folder with programs in bin/, and where the stand-in's processes are told what to do."""
    place = tmp_path / "place"
    (place / "bin").mkdir(parents=True)
    program(place / "bin" / "ssh", SSH)
    program(place / "bin" / "srun", SRUN.format(python=sys.executable))
    program(place / "bin" / "scontrol", SCONTROL)
    (place / "hosts").write_text("# two machines\n127.0.0.1 slots=1\n\nlocalhost   slots=1  # the second\n")
    return place


@pytest.fixture
def small_launcher(place):
    program(place / "bin" / "accelerate", LAUNCHER.format(python=sys.executable, worker=WORKER))


def environment(place, **more):
    path = f"{place / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "HF_HOME": str(place), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **more}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(place):
    """Start a command in the repository's folder; at the end of the test it is gone, with all that it started."""
    started = []

    def start(command, log, **more):
        with log.open("a") as stream:
            process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                cwd=REPOSITORY,
                env=environment(place, **more),
                start_new_session=True,
                preexec_fn=_listen,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdin.close()


def wait_for(paths, process, log):
    wait_until(lambda: all(map(os.path.exists, paths)), process, log)


def hostfile_command(place, script=(RECIPES / "finetune.py",), **options):
    options = {"hostfile": place / "hosts", "config_file": RECIPES / "accelerate" / "cpu.yaml", **options}
    options.setdefault("main_process_ip", "127.0.0.1")
    flags = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
    return ["bash", CLUSTER / "launch_hostfile.sh", *flags, "--", *script]


def slurm_environment(**changed):
    own = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "PROCESSES_PER_NODE": "1",
        "ACCELERATE_CONFIG": "recipes/accelerate/cpu.yaml",
        "MAIN_PROCESS_PORT": str(free_port()),
    }
    return {name: value for name, value in {**own, **changed}.items() if value is not None}
