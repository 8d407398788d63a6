"""`mce-llm copy`: which files a name stands for, and that nothing of a user's is overwritten."""

import pytest

from helpers.scripts import ROOT
from mce_llm.commands.copying import chosen_names, copy_shipped
from mce_llm.running.folder import OutputError
from mce_llm.running.installation import InstallationError


def test_names():
    everything = chosen_names([])
    assert {name.split("/")[0] for name in everything} == {"recipes", "eval", "vision"}
    assert not [name for name in everything if "__pycache__" in name]
    assert chosen_names(["eval"]) == [name for name in everything if name.startswith("eval/")]
    assert chosen_names(["recipes/accelerate/"]) == [
        name for name in everything if name.startswith("recipes/accelerate/")
    ]
    for name in ("gsm8k", "gsm8k.py", "eval/gsm8k.py"):
        assert chosen_names([name]) == ["eval/gsm8k.py"]
    assert chosen_names(["likelihood"]) == ["eval/likelihood.py"]
    assert chosen_names(["gsm8k", "eval/gsm8k.py", "knn.py"]) == ["eval/gsm8k.py", "vision/knn.py"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gms8k", r"brings no 'gms8k' \(did you mean 'gsm8k'\?\)"),
        ("README.md", r"may be eval/README.md or recipes/README.md or vision/README.md"),
        ("../pyproject.toml", r"brings no '\.\./pyproject\.toml'"),
        ("/etc/passwd", "brings no '/etc/passwd'"),
    ],
)
def test_names_that_fit_nothing(name, message):
    with pytest.raises(InstallationError, match=message):
        chosen_names([name])


def test_all_or_nothing(tmp_path):
    copy_shipped(["eval"], tmp_path)
    mine = tmp_path / "eval" / "gsm8k.py"
    mine.write_text("mine\n")
    (tmp_path / "eval" / "README.md").unlink()
    with pytest.raises(
        OutputError, match=r"1 file in .* not as mce-llm brings them, .*eval/gsm8k\.py for one.*--overwrite"
    ):
        copy_shipped(["eval"], tmp_path)
    assert mine.read_text() == "mine\n"
    assert not (tmp_path / "eval" / "README.md").exists()
    copied = copy_shipped(["eval"], tmp_path, overwrite=True)
    assert {path.name for path in copied.written} == {"gsm8k.py", "README.md"}
    assert [path.name for path in copied.kept] == ["hendrycks_math.py", "likelihood.py"]
    assert mine.read_bytes() == (ROOT / "eval" / "gsm8k.py").read_bytes()


def test_places_that_cannot_be_used(tmp_path, unwritable):
    with pytest.raises(OutputError, match="is where these files come from"):
        copy_shipped(["eval"], ROOT)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        copy_shipped(["eval"], tmp_path / "file")
    with pytest.raises(OutputError, match=r"no permission|cannot write to"):
        copy_shipped(["eval"], unwritable)
