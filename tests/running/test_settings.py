"""Settings from a YAML file and a command line, for any dataclasses."""

from dataclasses import dataclass, field

import pytest

from mce_llm.running.settings import ConfigurationError, mapping_of, names_of, parse_settings, raise_all
from mce_llm.running.yaml_text import dump_yaml


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
    extra: dict[str, float] | str | None = None
    places: None | str | list[str] = None  # noqa: RUF036 - the parser takes the second of these
    pairs: str | None = None

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


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("names: no", {"names": "no"}),
        ("names: 010", {"names": "010"}),
        ("names: 1e-7", {"names": "1e-7"}),
        ("names: 2024-05-01", {"names": "2024-05-01"}),
        ("names: 1:30", {"names": "1:30"}),
        ("names: true", {"names": "true"}),
        ("keep: yes", {"keep": True}),
        ("keep: On", {"keep": True}),
        ("keep: off", {"keep": False}),
        ("keep: 'no'", {"keep": False}),
        ("rate: 1e-7", {"rate": 1e-7}),
        ("rate: 1_0", {"rate": 10.0}),
        ("steps: 1e3", {"steps": 1000}),
        ("steps: 0x10", {"steps": 16}),
        ("steps: 010", {"steps": 10}),
        ("mean: [1e-7, 2, .5]", {"mean": [1e-7, 2.0, 0.5]}),
        ("places: [no, 010]", {"places": ["no", "010"]}),
        ("places: [no]", {"places": "no"}),
        ("places: no", {"places": "no"}),
    ],
)
def test_values_mean_what_their_setting_takes(tmp_path, written, meant):
    """And what was given can be given again."""
    (place, numbers), given = parse(tmp_path, f"output_dir: a\n{written}\n")
    found = {**vars(place), **vars(numbers)}
    assert {name: found[name] for name in meant} == meant
    assert parse(tmp_path, dump_yaml(given))[0] == (place, numbers)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--steps", "1e3"], {"steps": 1000}),
        (["--keep", "on"], {"keep": True}),
        (["--extra", "{a: 1e-7}"], {"extra": '{"a": 1e-07}'}),
        (["--names", "{a: no"], {"names": "{a: no"}),
    ],
)
def test_the_command_line_reads_alike(tmp_path, words, meant):
    (place, numbers), _ = parse(tmp_path, "output_dir: a\n", *words)
    found = {**vars(place), **vars(numbers)}
    assert {name: found[name] for name in meant} == meant


def test_lists_that_are_text(tmp_path):
    (place, _), _ = parse(tmp_path, "output_dir: a\nnames: [x, y]\n", comma_lists=("names",))
    assert names_of(place.names) == ["x", "y"]


def test_mappings_that_are_text(tmp_path):
    (_, numbers), given = parse(tmp_path, "output_dir: a\npairs: {x: 1e-3, y: a}\n", assignments=("pairs",))
    assert numbers.pairs == given["pairs"] == "x=0.001,y=a"


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
        ("output_dir: a\nrate: 1:30\n", [], r"invalid float value: '1:30'"),
        ("output_dir: a\nsteps: 1.5e0\n", [], r"invalid int value: '1\.5'"),
        ("output_dir: a\noutput_dir: b\n", [], r"output_dir is given twice, in lines 1 and 2"),
        ("output_dir: a\nextra: {b: no}\n", [], r"extra\.b: no may mean false or the word"),
        ("output_dir: a\n", ["--extra", "{b: no}"], r"b: no may mean false or the word"),
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
    assert "y is not YAML" in problems[1]
