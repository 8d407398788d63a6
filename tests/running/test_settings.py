"""Settings from a YAML file and a command line, for any dataclasses."""

from dataclasses import dataclass, field

import pytest

from mce_llm.running.settings import ConfigurationError, mapping_of, names_of, parse_settings, raise_all


@dataclass
class Place:
    output_dir: str
    keep: bool = False
    names: str | None = None


@dataclass
class Numbers:
    rate: float = 0.1
    steps: int | None = 3
    mean: list[float] | None = field(default=None, metadata={"help": "three numbers"})

    def __post_init__(self):
        raise_all([f"rate must be positive, got {self.rate}"] if self.rate <= 0 else [])


def parse(tmp_path, text, *argv, **options):
    (tmp_path / "c.yaml").write_text(text)
    return parse_settings((Place, Numbers), ["--config", str(tmp_path / "c.yaml"), *argv], **options)


def test_file_and_command_line(tmp_path):
    (place, numbers), given = parse(
        tmp_path, "output_dir: a\nrate: 0.5\nmean: [1, 2, 3]\nsteps: null\n", "--rate", "2", "--keep", "true"
    )
    assert (place.output_dir, place.keep) == ("a", True)
    assert (numbers.rate, numbers.steps, numbers.mean) == (2.0, None, [1.0, 2.0, 3.0])
    assert given == {"output_dir": "a", "rate": 2.0, "mean": [1, 2, 3], "steps": None, "keep": True}


def test_lists_that_are_text(tmp_path):
    (place, _), _ = parse(tmp_path, "output_dir: a\nnames: [x, y]\n", comma_lists=("names",))
    assert names_of(place.names) == ["x", "y"]


def test_adjustments_see_what_was_given(tmp_path):
    def adjust(parsed, given):
        assert given == {"output_dir", "steps"}
        return [f"--rate={parsed.steps * 2}"]

    (_, numbers), given = parse(tmp_path, "output_dir: a\nsteps: 4\n", adjust=adjust)
    assert numbers.rate == 8
    assert "rate" not in given


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("output_dir: a\nrat: 1\n", [], r"unknown setting 'rat' \(did you mean 'rate'\?\)"),
        ("output_dir: a\nlearning_rate: 1\n", [], r"learning_rate is no setting here: give rate"),
        ("output_dir: a\n", ["--rate", "-1"], r"rate must be positive, got -1"),
        ("output_dir: a\nrate: fast\n", [], r"rate.*invalid"),
        ("rate: 1\n", [], r"output_dir.*--help lists every setting"),
        ("output_dir: a\nrate: [1, 2]\n", [], r"rate takes one value, got a list of 2"),
        ("output_dir: null\n", [], r"output_dir cannot be null"),
        ("output_dir: a\n", ["stray"], r"unexpected word 'stray'"),
        ("- a\n", [], r"must hold a mapping"),
        ("a: [\n", [], r"is not YAML"),
    ],
)
def test_what_cannot_be_used(tmp_path, text, argv, message):
    with pytest.raises(ConfigurationError, match=message):
        parse(tmp_path, text, *argv, refused={"learning_rate": "give rate"})


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigurationError, match=r"no configuration file 'nowhere.yaml'"):
        parse_settings((Place,), ["--config", "nowhere.yaml"])


def test_help_names_the_settings(capsys):
    with pytest.raises(SystemExit):
        parse_settings((Place, Numbers), ["--help"], description="What this is for.")
    shown = capsys.readouterr().out
    assert "What this is for." in shown
    assert "three numbers" in shown


def test_mappings():
    problems = []
    assert mapping_of("x", "{a: 1}", problems) == {"a": 1}
    assert mapping_of("x", None, problems) == {}
    assert not problems
    mapping_of("x", "3", problems)
    mapping_of("y", "{", problems)
    assert "x must be a mapping, got '3'" in problems[0]
    assert "y is not a mapping" in problems[1]
