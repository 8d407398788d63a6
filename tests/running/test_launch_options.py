"""Options of `accelerate launch`: values that belong to no option, and options that lack theirs."""

import pytest
from accelerate.commands import launch
from accelerate.commands.config import config_args

from mce_llm.running.launch_options import (
    given_options,
    misplaced_values,
    num_processes,
    with_default_file,
    with_defaults,
)
from mce_llm.running.messages import ConfigurationError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cpu", "true"], "'true' is the value of no option: cpu is a switch and takes none"),
        (["cpu"], "'cpu' is the value of no option: no option stands before it"),
        (["--num_processes", "--cpu"], "num_processes needs a value"),
        (["--num-processes", "--cpu"], "num_processes needs a value"),
        (["--cpu", "--config_file"], "config_file needs a value"),
        (["--num_processes", "2", "3"], "'3' is a second value of num_processes, which takes one"),
        (["--num_processes=2", "3"], "'3' is a second value of num_processes, which takes one"),
    ],
)
def test_what_the_launcher_would_take_for_its_script_is_found(words, message):
    assert misplaced_values(words) == [message]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--cpu"],
        ["--num_processes", "2", "--mixed_precision", "no"],
        ["--num_processes=2", "--cpu"],
        ["--rdzv_conf", "-1"],
    ],
)
def test_what_is_in_its_place_is_no_problem(words):
    assert misplaced_values(words) == []


@pytest.fixture
def default_file(tmp_path, monkeypatch):
    """What `accelerate config` leaves, for two processes."""
    path = tmp_path / "default_config.yaml"
    path.write_text("distributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: 2\n")
    for module in (config_args, launch):
        monkeypatch.setattr(module, "default_config_file", str(path))
    return path


@pytest.mark.parametrize(
    ("words", "count"), [([], 2), (["--num_processes", "3"], 3), (["--cpu", "--num_processes", "1"], 1)]
)
def test_the_file_of_accelerate_config_is_counted_as_accelerate_counts(words, count, default_file):
    arguments = launch.launch_command_parser().parse_args([*words, "script.py"])
    launch._validate_launch_command(arguments)
    assert arguments.num_processes == count
    assert num_processes(with_default_file(words)) == count


def test_the_file_of_accelerate_config_is_named_where_it_is_read(default_file):
    named = ["--config_file", str(default_file)]
    assert with_default_file([]) == named
    assert with_defaults([])[:2] == named
    assert with_default_file(["--config_file", "own.yaml"]) == ["--config_file", "own.yaml"]
    assert with_default_file(["--cpu"]) == ["--cpu"]
    default_file.unlink()
    assert with_default_file([]) == []


def test_the_cpu_is_one_process_whatever_accelerate_config_says(default_file, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    words = with_defaults(["--cpu"])
    assert "--config_file" not in words
    assert num_processes(words) == 1


@pytest.fixture
def machine(monkeypatch):
    """Eight cores, some GPUs, no default file, and nothing said of threads."""

    def set_gpus(count):
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: None)

    monkeypatch.setattr(
        "mce_llm.running.launch_options.os.sched_getaffinity", lambda _: set(range(8)), raising=False
    )
    monkeypatch.setattr(config_args, "default_config_file", "/nowhere/default_config.yaml")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return set_gpus


def threads(words, **share):
    return given_options(with_defaults(words, **share)).get("num_cpu_threads_per_process")


def test_processes_on_the_cpu_share_the_cores(machine, tmp_path):
    machine(0)
    path = tmp_path / "own.yaml"
    path.write_text("num_processes: 6\nnum_machines: 3\n")
    assert threads([]) == "8"
    assert threads([], cores=3) == "3"
    assert threads(["--config_file", str(path)]) == "4"  # two of its processes are on this machine
    assert threads(["--config_file", str(path), "--num_processes", "300"]) == "1"


@pytest.mark.parametrize("gpus", [0, 2])
def test_what_is_said_of_threads_stays(gpus, machine, monkeypatch):
    machine(gpus)
    assert threads(["--num_cpu_threads_per_process", "3"]) == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads([]) is None
    assert threads(["--cpu"]) is None


def test_beside_gpus_threads_are_left_to_accelerate(machine, tmp_path):
    machine(2)
    path = tmp_path / "own.yaml"
    path.write_text("num_processes: 2\n")
    assert threads([]) is None
    assert threads(["--config_file", str(path)]) is None
    assert threads(["--cpu"]) == "8"


@pytest.mark.parametrize("content", [None, "num_processes: many\n"])
def test_a_launch_file_that_tells_no_processes(content, machine, tmp_path):
    machine(0)
    path = tmp_path / "own.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"cannot be read|must be a positive number, got 'many'"):
        with_defaults(["--config_file", str(path)])
