"""`mce-llm finetune --settings`: every setting by name, with its default and what it does."""

from mce_llm.finetuning.configuration import known_settings


def test_every_setting_is_listed(command):
    result = command("finetune", "--settings")
    assert result.exit_code == 0
    names = {line.split()[0] for line in result.stdout.splitlines() if line[:2] == "  " and line[2] != " "}
    assert names == known_settings()
    assert "  dataset (required)\n" in result.stdout
    assert "  packing (false)\n" in result.stdout
    assert "  lr_scheduler_type (linear)\n" in result.stdout
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


def test_the_help_says_so(command):
    result = command("finetune", "--help", columns=200)
    assert "--settings" in result.stdout
    assert "List every setting of a recipe" in result.stdout
