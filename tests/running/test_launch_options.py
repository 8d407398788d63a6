"""Options of `accelerate launch`: values that belong to no option, and options that lack theirs."""

import pytest

from mce_llm.running.launch_options import misplaced_values


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
