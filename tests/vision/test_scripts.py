"""What all scripts of vision/ have in common: how they are told their settings."""

import pytest

from helpers.scripts import load_script
from mce_llm.vision.running import run_script

SCRIPTS = ("pretrain", "linear_probe", "knn", "semi_supervised", "detection", "export", "pictures")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_the_script_does_and_lists_its_settings(name, capsys):
    script = load_script(f"vision/{name}.py")
    with pytest.raises(SystemExit) as left:
        script.main(["--help"])
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(script.__doc__.split("\n")[0].split()) in shown
    assert "--output_dir" in shown
    assert "--config" in shown


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_misspelt_setting_is_an_error_in_a_file_too(name, tmp_path, capsys):
    config = tmp_path / "settings.yaml"
    config.write_text("outptu_dir: there\n")
    assert (
        run_script(load_script(f"vision/{name}.py").main, ["--config", str(config), "--stme", "cifar"]) == 2
    )
    said = capsys.readouterr().err
    assert "unknown setting 'outptu_dir' (did you mean 'output_dir'?)" in said
    assert "unknown setting 'stme'" in said
    assert not (tmp_path / "there").exists()
