r"""How the time to find an answer grows with the length of a text: each marker, and what patterns stumble over, repeated.

Each piece is repeated to every length, and the time of `extract_answer` is taken as CPU time of this process. A linear
reader has the same time per megabyte at every length: the last column is the time at the longest text over that at the
shortest, per character. Ends with exit code 1 where it is above `--growth` and the longest takes over a second.

    python benchmarks/answer_length.py --kilobytes 32 256 1024
"""

import argparse
import sys
import time

from mce_llm.eval.answers import extract_answer

PIECES = (
    "#### 1\n", "#### ", "#### x\n", "#### Case 2\n", "oops\n#### 2\n", "The answer is 5. ", "the answer is ",
    "\\boxed{5} ", "\\boxed{", "<answer>5</answer>", "<answer>", "\nA:", "\nA: 3\n", "\nB: 3\nA: 2", "**5** ", "**",
    "<think>", "</think>", "<think>1</think>", "答案是", "Question: x\n", "\nTask 1: 2\n", "How many ",
    "\n\nTom has. How ", "\\", "\\\\[", "\\(", "$", "$1$ ", "{", "}", "\\text{", "\\frac{1}{2}", "<<", "<<1=1>>", "1", "1 ",
    "1,", "1.", "11,", "1/", "1+", "1=", "one ", "-", " ", "\n", "a", "</s>", "是1",
)  # fmt: skip


def seconds(text: str, style: str | None) -> float:
    """Return the CPU time that one text takes."""
    started = time.process_time()
    extract_answer(text, style)
    return time.process_time() - started


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kilobytes", type=int, nargs="+", default=[32, 256, 1024], help="Lengths, in 1,024 characters."
    )
    parser.add_argument(
        "--growth", type=float, default=3.0, help="The most that time per character may grow."
    )
    parser.add_argument(
        "--all", action="store_true", help="Print every piece, and not the ten slowest alone."
    )
    parser.add_argument("--pieces", nargs="+", default=PIECES, help="What is repeated; by default all known.")
    options = parser.parse_args()
    lengths = sorted(1024 * size for size in options.kilobytes)
    rows = []
    for style in (None, "math"):
        for piece in options.pieces:
            texts = [(piece * (length // len(piece) + 1))[:length] for length in lengths]
            times = [seconds(text, style) for text in texts]
            rows.append(
                (piece, style or "numbers", times, times[-1] / max(times[0], 1e-4) * lengths[0] / lengths[-1])
            )
    rows.sort(key=lambda row: -row[2][-1])
    print(f"| text | style | {' | '.join(f'{size} KB' for size in sorted(options.kilobytes))} | growth |")
    print("|---|---|" + "---|" * (len(lengths) + 1))
    for piece, style, times, growth in rows if options.all else rows[:10]:
        print(f"| `{piece!r}` | {style} | {' | '.join(f'{value:.2f} s' for value in times)} | {growth:.2f} |")
    failed = [row for row in rows if row[3] > options.growth and row[2][-1] > 1]
    print(
        f"\n{len(rows)} texts; the slowest takes {rows[0][2][-1]:.1f} s; {len(failed)} grow faster than their length"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
