"""The time to find an answer grows with the length of a text and no faster, whatever is repeated in it."""

import re
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "answer_length.py"


def run(*options):
    return subprocess.run(
        [sys.executable, str(BENCHMARK), *options], capture_output=True, text=True, timeout=280, check=False
    )


def test_linear():
    """8 and 32 KB: a quadratic reader takes four times as long a character, and seconds in all."""
    result = run("--kilobytes", "8", "32")
    assert result.returncode == 0, result.stdout + result.stderr
    assert float(re.search(r"the slowest takes ([\d.]+) s; 0 grow", result.stdout)[1]) < 5


def test_the_benchmark_sees_growth(tmp_path):
    quadratic = tmp_path / "quadratic.py"
    quadratic.write_text(
        "import runpy, sys\nimport mce_llm.eval.answers as answers\n"
        "answers.extract_answer = lambda text, style: any(text[place:].isspace() for place in range(0, len(text), 4))\n"
        f"sys.argv = ['answer_length', '--kilobytes', '64', '1024', '--pieces', 'a']\nrunpy.run_path({str(BENCHMARK)!r}, run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, str(quadratic)], capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "0 grow faster" not in result.stdout
