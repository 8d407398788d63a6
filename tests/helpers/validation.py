"""What `mce-llm validate --json` found."""

import json


def validated(command, *words, code=0):
    """Run the command, and return what it printed; the exit code must be `code`, there too."""
    result = command("validate", *words, "--json")
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    assert found["exit_code"] == code
    return found


def texts(found, level):
    """The findings of one level (ok, warning, problem), with what they are about."""
    return [f"{item['subject']}: {item['text']}" for item in found["findings"] if item["level"] == level]
