"""The machine is shared out between runs: GPUs by their names, cores by threads, and launcher options follow."""

import pytest
import torch

from mce_llm.studies.errors import StudyError
from mce_llm.studies.slots import Slot, slots_of


@pytest.fixture
def gpus(monkeypatch):
    def set_count(count, visible=None):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    monkeypatch.setattr("mce_llm.studies.slots.os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(
        "accelerate.commands.config.config_args.default_config_file", "/nowhere/default_config.yaml"
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return set_count


def test_gpus_are_split_by_their_names(gpus):
    gpus(5, "4,5,6,7,9")
    one, two = slots_of(2)
    assert one.environment == {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert two.environment == {"CUDA_VISIBLE_DEVICES": "6,7"}
    assert one.gpu_count == 2
    (whole,) = slots_of(1)
    assert whole.environment == {}
    assert whole.gpu_count == 5
    with pytest.raises(StudyError, match=r"--jobs 6 on a machine with 5 GPUs; 5 at most"):
        slots_of(6)


def test_cores_are_split_into_threads(gpus):
    gpus(0)
    one, two = slots_of(2)
    assert one == two
    words = one.launch_words([])
    assert words[-2:] == ["--num_cpu_threads_per_process", "4"]
    assert one.processes(words) == 1
    with pytest.raises(StudyError, match=r"--jobs 9 on a machine with 8 cores"):
        slots_of(9)


def test_threads_that_were_asked_for_stay(gpus, monkeypatch):
    gpus(0)
    assert (
        slots_of(1)[0]
        .launch_words(["--num_cpu_threads_per_process", "3"])
        .count("--num_cpu_threads_per_process")
        == 1
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "--num_cpu_threads_per_process" not in slots_of(2)[0].launch_words([])


def test_a_launch_file_for_the_whole_machine_gets_the_share(gpus, tmp_path):
    gpus(8)
    (tmp_path / "all.yaml").write_text("num_processes: 8\n")
    words = slots_of(2)[0].launch_words(["--config_file", str(tmp_path / "all.yaml")])
    assert words[2:] == ["--num_processes", "4", "--main_process_port", "0"]
    assert slots_of(2)[0].processes(words) == 4
    whole = slots_of(1)[0].launch_words(["--config_file", str(tmp_path / "all.yaml")])
    assert whole == ["--config_file", str(tmp_path / "all.yaml")]
    with pytest.raises(
        StudyError, match=r"num_processes 8, and each run gets 4 GPUs; ask for fewer processes"
    ):
        slots_of(2)[0].launch_words(["--num_processes", "8"])


def test_the_file_of_accelerate_config_is_one_like_any_other(gpus, tmp_path, monkeypatch):
    """accelerate reads it unasked: its processes are counted, and the record of a run names it."""
    gpus(8)
    path = str(tmp_path / "default_config.yaml")
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", path)
    (tmp_path / "default_config.yaml").write_text("num_processes: 6\n")
    (whole,), (share, _) = slots_of(1), slots_of(2)
    assert whole.launch_words([]) == ["--config_file", path]
    assert whole.processes(whole.launch_words([])) == 6
    assert share.launch_words([])[2:] == ["--num_processes", "4", "--main_process_port", "0"]
    assert "--config_file" not in whole.launch_words(["--cpu"])


def test_all_gpus_of_a_share_are_used_by_default():
    slot = Slot(("2", "3"), 2, 4, True)
    assert slot.processes([]) == 2
