"""What several runs of pytest skipped, each reason with its tests, and one line for each run.

    python3 .ci/outcome.py FIRST.xml FIRST-again.xml SECOND.xml

The files are what `pytest --junitxml` writes. A test that one run skipped and another ran is not listed. NAME-again.xml is of
the tests that failed in NAME.xml, run once more: those that passed then are listed, and are no failures. Exit code 1 where a
file is missing, or has another failure or no test at all.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

RAN, SKIPPED, FAILED = "ran", "skipped", "failed"
AGAIN = "-again"


def outcomes(path: Path) -> dict[str, tuple[str, str]]:
    """Read a file: test → (outcome, reason); a module that is skipped as a whole counts as one test."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            found[name] = (FAILED, "")
        elif skipped is not None:
            # Of a whole module the message says nothing; the text is ('FILE', LINE, "Skipped: REASON").
            whole = skipped.get("message") == "collection skipped"
            text = (skipped.text or "").partition("Skipped: ")[2].rstrip("\"')")
            found[name] = (SKIPPED, text if whole else skipped.get("message") or "")
        else:
            found[name] = (RAN, "")
    return found


def still_skipped(runs: list[dict[str, tuple[str, str]]]) -> dict[str, list[str]]:
    """Reason → the tests that no run has run."""
    ran = {name for run in runs for name, (outcome, _) in run.items() if outcome != SKIPPED}
    reasons: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for name, (outcome, reason) in run.items():
            # Of a module that was skipped as a whole, another run has run some tests.
            if outcome == SKIPPED and not any(test == name or test.startswith(f"{name}.") for test in ran):
                reasons[" ".join(reason.split())].add(name)
    return {reason: sorted(names) for reason, names in sorted(reasons.items())}


def passed_again(runs: dict[str, dict[str, tuple[str, str]]]) -> list[str]:
    """Turn the failures that passed when run once more into passes, in place; returns their names."""
    names = []
    for stem, run in runs.items():
        for name, (outcome, _) in run.items():
            if outcome == FAILED and runs.get(f"{stem}{AGAIN}", {}).get(name, (FAILED, ""))[0] == RAN:
                run[name] = (RAN, "")
                names.append(name)
    return names


def main(paths: list[Path]) -> int:
    """Print the list; returns the exit code."""
    runs, failed = {}, False
    for path in paths:
        if not path.is_file():
            print(f"{path} is missing: that run did not come as far as its tests")
            failed = True
            continue
        runs[path.stem] = outcomes(path)
    again = passed_again(runs)
    print("\nskipped, by reason:")
    for reason, names in still_skipped(list(runs.values())).items():
        print(f"  {reason}")
        for name in names:
            print(f"    {name}")
    if again:
        print("\nfailed, and passed when run again:", *again, sep="\n  ")
    for stem, run in runs.items():
        counts = {
            kind: sum(outcome == kind for outcome, _ in run.values()) for kind in (RAN, SKIPPED, FAILED)
        }
        print(f"{stem}: {counts[RAN]} passed, {counts[SKIPPED]} skipped, {counts[FAILED]} failed")
        failed |= counts[FAILED] > 0 or counts[RAN] == 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
