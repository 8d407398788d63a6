r"""How exactly final answers are read: every reference answer in every marked form, behind its own solution.

Each answer of the given GSM8K files is written in each form (`#### X`, `\boxed{X}`, …) with each decoration (units,
`$`, thousands, `.00`, …) behind the solution of its question, calculator notes kept and stripped, and followed by
what generations run on with (further questions and their answers). The text must give the reference, and the same
text with a wrong number (reference + 1, × 10, a digit dropped, …) must be judged wrong. Prints one row a form.

    python benchmarks/answer_forms.py --data train.jsonl test.jsonl
"""

import argparse
import itertools
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from mce_llm.eval.answers import extract_answer, gold_value, is_correct

FORMS = {
    "#### X": ["\n#### {}", "\n####{}", "\n#### **{}**"],
    "A: X": ["\nA: {}", "\n**Answer:** {}", "\nFinal Answer: {}", "\n### Answer\n{}"],
    "The answer is: X": ["\nThe answer is: {}", "\nTherefore, the final answer is: **{}**"],
    "The answer is X.": ["\nThe answer is {}.", "\nSo the answer is {}."],
    "\\boxed{X}": ["\n$\\boxed{{{}}}$", "\nThe final answer is $\\boxed{{{}}}$. I hope it is correct.", "\n\\[\\boxed{{{}}}\\]"],
    "<answer>X</answer>": ["\n<answer>{}</answer>", "\n<answer>\n{}\n</answer>", "</think>\n<answer>The answer is {}</answer>"],
    "**X**": ["\nIn all **{}**.", "\n**{}**", "\n**Total: {}**"],
    "last number": ["\nIn all that makes {}", "\n#### 777\n</think>\n\nIn all that makes {}"],
}  # fmt: skip
DECORATIONS = {
    "plain": "{plain}",
    "thousands": "{thousands}",
    "$": "${plain}",
    "$, thousands, .00": "${thousands}{cents}",
    "\\$": "\\${thousands}",
    "units": "{plain} apples",
    "square metres": "{plain} m^2",
    "\\text, squared": "{plain} \\text{{ m}}^2",
    "%": "{plain}%",
    "\\%": "{plain}\\%",
    ".00": "{plain}{cents}",
    "unicode minus": "{unicode}",
    "fraction": "{fraction}",
    "LaTeX fraction": "{latex}",
    "\\text": "{plain}\\text{{ dollars}}",
}
TAILS = {
    "": "",
    "newline": "\n",
    "</s>": "</s>",
    "EOS, next": "<|im_end|>\n<|im_start|>user\nHow many are 3 + 4?\n#### 7",
    "next question": "\n\nQuestion: Tom has 3 apples and buys 4. How many has he?\nAnswer: 3 + 4 = <<3+4=7>>7\n#### 7",
    "next instruction": "\n\n### Instruction:\nWhat is 3 + 4?\n\n### Response: 3 + 4 = 7\nThe answer is: 7",
    "Q and A": "\n\nQ: What is 3 + 4?\nA: 7",
    "repeated prompt": "\nBelow is an instruction that describes a task. 3 + 4\n\\boxed{7}",
}
_NOTES = re.compile(r"<<[^<>\n]*>>")


def written(value: Fraction) -> dict[str, str]:
    """Return the spellings that the decorations ask for; those that cannot spell the value are left out."""
    decimals = 0
    while decimals < 6 and value * 10**decimals != int(value * 10**decimals):
        decimals += 1
    if value * 10**decimals != int(value * 10**decimals):
        return {}
    digits = f"{abs(int(value * 10**decimals)):0{decimals + 1}d}"
    whole, part = (digits[:-decimals], digits[-decimals:]) if decimals else (digits, "")
    sign, point = "-" if value < 0 else "", f".{part}" if part else ""
    spellings = {
        "plain": f"{sign}{whole}{point}",
        "thousands": f"{sign}{int(whole):,}{point}",
        "cents": "" if part else ".00",
        "fraction": f"{value.numerator}/{value.denominator}" if value.denominator > 1 else f"{2 * value}/2",
        "latex": f"{sign}\\frac{{{2 * abs(value.numerator)}}}{{{2 * value.denominator}}}",
    }
    if value < 0:
        spellings["unicode"] = f"\u2212{whole}{point}"
    return spellings


def wrong_values(value: Fraction) -> list[Fraction]:
    """Return what a careless reader would take for the value."""
    digits = str(abs(value.numerator))
    candidates = [value + 1, value - 1, value * 10, value * 100, value / 100, value + Fraction(1, 2), -value]
    candidates += [
        Fraction(int(digits[:-1] or 0)),
        Fraction(int(digits[1:] or 0)),
        Fraction(int(digits[-3:])),
    ]
    return sorted({candidate for candidate in candidates if candidate != value})


def cases(
    records: list[dict[str, str]], texts_per_answer: int
) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yield (form, decoration, tail, text, wrong text, reference): every form of every answer.

    The other choices go through all their combinations in turn, so that together the answers meet all of them.
    """
    combinations = {
        form: list(itertools.product(templates, DECORATIONS, TAILS, (True, False)))
        for form, templates in FORMS.items()
    }
    counters: Counter[str] = Counter()
    for record in records:
        solution, _, reference = record["answer"].rpartition("\n####")
        value = gold_value(reference)
        # One solution of the 8,792 says "The answer is 8." itself: what weaker marks add after that is not its answer.
        answered = extract_answer(solution).found_by not in ("last_number", "none")
        spellings = written(value)
        wrongs = wrong_values(value)
        for form in FORMS:
            if answered and form in ("**X**", "last number"):
                continue
            for _ in range(texts_per_answer):
                number = counters[form]
                counters[form] += 1
                # A stride that shares no factor with the number of combinations visits each of them equally often.
                template, decoration, tail, notes = combinations[form][
                    number * 7919 % len(combinations[form])
                ]
                wrong = wrongs[number % len(wrongs)]
                texts = []
                for spelling in (spellings, written(wrong)):
                    try:
                        answer = DECORATIONS[decoration].format(**spelling)
                    except KeyError:  # this number cannot be spelled so: a positive one has no minus
                        answer = spelling["plain"]
                    body = solution if notes else _NOTES.sub("", solution)
                    texts.append(body + template.format(answer) + TAILS[tail])
                yield form, decoration, tail, texts[0], texts[1], reference.strip()


def main() -> int:
    """Print the table, and the first texts that were judged wrongly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="GSM8K files, or folders of them (.jsonl)."
    )
    parser.add_argument("--texts", type=int, default=4, help="Texts of each form for each answer.")
    parser.add_argument("--limit", type=int, help="Only the first records.")
    parser.add_argument("--show", type=int, default=5, help="Wrongly judged texts to print.")
    options = parser.parse_args()
    files = [
        file for path in options.data for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])
    ]
    records = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    records = records[: options.limit]
    if not records:
        parser.error(f"there is no record in {', '.join(map(str, options.data))}")
    started = time.perf_counter()
    counts: dict[str, Counter[str]] = {form: Counter() for form in FORMS}
    shown: list[str] = []
    for form, decoration, tail, right, wrong, reference in cases(records, options.texts):
        count = counts[form]
        answer, other = extract_answer(right), extract_answer(wrong)
        missed, passed = not is_correct(answer, reference), is_correct(other, reference)
        count["n"] += 1
        count["missed"] += missed
        count["passed"] += passed
        count["fall-back"] += (answer.found_by == "last_number") + (other.found_by == "last_number")
        if (missed or passed) and len(shown) < options.show:
            found, text = (answer, right) if missed else (other, wrong)
            shown.append(
                f"{form} | {decoration} | {tail!r}: reference {reference}, read {found}\n  …{text[-160:]!r}"
            )
    print(f"{len(records)} answers of {', '.join(map(str, files))}; {time.perf_counter() - started:.0f} s\n")
    print(
        "| form | texts with the reference | judged right | texts with a wrong number | judged wrong | by fall-back |"
    )
    print("|---|---|---|---|---|---|")
    total: Counter[str] = Counter()
    for form, count in [*counts.items(), ("all", total)]:
        total += count if form != "all" else Counter()
        n = count["n"]
        print(
            f"| `{form}` | {n} | {n - count['missed']} | {n} | {n - count['passed']} | {count['fall-back']} |"
        )
    print(*shown, sep="\n")
    return 1 if total["missed"] or total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
