"""MATH answers: what equals the reference, what does not, and what comparing them must never do."""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.waiting import HANG

pytest.importorskip("math_verify")

from mce_llm.eval.answers import Answer, GoldAnswerError, extract_answer, gold_expression, is_correct
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.judging import symbolic
from mce_llm.eval.judging.expressions import equivalent, number_of


def load_pairs(equal):
    lines = (Path(__file__).parent / "math_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [(pair["answer"], pair["gold"]) for pair in map(json.loads, lines) if pair["equal"] is equal]


EQUAL, DIFFERENT = load_pairs(True), load_pairs(False)
# References of all kinds, no two of them equal; separated by bars.
REFERENCES = r"""
\frac{243}{625} | 6r^2-4r-24 | \sqrt{51} | (-1,6) | 3 \pm 2 \sqrt{2} | 11\sqrt2 | \text{(A)} |
5.4 \text{ cents} | x^3+3x-6 | \$18.90 | 1 \pm \sqrt{19} | [0,\infty) |
\left(\frac{3}{5},\frac{8}{3}\right] | \text{ellipse} | y^4-2y^3+7y^2+y-5 |
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | (2,12) | \frac{3}{56} | 6+9i | \cot x |
-\frac{35}{9} | 18+2\pi | \text{Navin} | 1,3,5 | 12, 10, 6 | (6,31,-1) | \frac{1}{2}, \frac{3}{4} |
2k+2 | x=5 | \sqrt{x} | 13\pi | (-\infty,-8)\cup (8,\infty) | 2400\pi | (x - 2)^2 + (y+1)^2 = 9 |
\frac{x^2}{9}+\frac{y^2}{4}=1 | p - q | .35625 | 3R^2 | 0 < x < 1 | \frac{\pi}{4} |
(\sqrt{3}, -\pi) | \tan 40^\circ | 8\frac{1}{3} | 14\frac{6}{7} | \log_{10} 5 | -\cos\theta |
\cos^2 x | 2^{n-1} | x+2y-3z+4=0 | (-2,1) | \frac{\sqrt{3}}{2} | 2516_8 | \{1,2\} | (-\infty,3] |
x \in [-2,7] | 70\sqrt{2} | \frac{2\pi}{3} | e^{2} | i | -i | 0 | 1 | \infty | \emptyset | 2:30 |
\frac{1}{x+1} | 9x^2-6x+1 | -\frac{1}{2} | \frac{1}{3} | 10^{100} | 3\sqrt{3}-\pi |
\frac{5+\sqrt{5}}{2} | \begin{pmatrix} 1 \\ 2 \end{pmatrix} | \text{Tuesday} | C | k \ge 3 | a=4 |
(1,2)\cup(3,4)
"""
GOLDS = [text.strip() for text in REFERENCES.split("|")]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal(answer, gold):
    assert equivalent(answer, gold)
    assert is_correct(rf"So we get $\boxed{{{answer.strip('$')}}}$.", gold, style="math")


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different(answer, gold):
    assert not equivalent(answer, gold)
    assert not is_correct(f"So $7$ it is.\nThe answer is: {answer}", gold, style="math")


def changed(gold):
    """Give a reference with one digit or one sign changed, for each there is."""
    for match in re.finditer(r"[-+0-9]", gold):
        other = {"-": "+", "+": "-"}.get(match[0]) or str((int(match[0]) + 1 + match.start() % 7) % 10)
        yield gold[: match.start()] + other + gold[match.end() :]


def test_a_reference_equals_itself_and_nothing_with_a_digit_or_sign_changed():
    assert [gold for gold in GOLDS if not equivalent(gold, gold)] == []
    answers = [(answer, gold) for gold in GOLDS for answer in changed(gold)]
    assert len(answers) > 150
    assert [pair for pair in answers if equivalent(*pair)] == []


@pytest.mark.slow
def test_no_reference_equals_another():
    assert [pair for pair in itertools.permutations(GOLDS, 2) if equivalent(*pair)] == []


# text × (answer as written, found by)
FORMS = [
    (r"So $x = \boxed{\frac{1}{2}}$.", r"\frac{1}{2}", "boxed"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "boxed"),
    (r"\boxed{\frac{\sqrt{\frac{1}{2}}}{3}}", r"\frac{\sqrt{\frac{1}{2}}}{3}", "boxed"),
    (r"\boxed{\boxed{7}}", "7", "boxed"),
    (r"$\boxed 5$", "5", "boxed"),
    (r"$\boxed5$.", "5", "boxed"),
    (r"\fbox{12}", "12", "boxed"),
    (r"$\boxed{2}$, no: $\boxed{3}$.", "3", "boxed"),
    (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "boxed"),
    (r"\boxed{\frac{1}{2}", "1/2", "last_number"),
    ("\\boxed{5}\nThe answer is: 5", "5", "answer_is"),
    (r"The answer is: $\frac{\pi}{2}$", r"\frac{\pi}{2}", "answer_is"),
    ("The answer is: 3.5.", "3.5", "answer_is"),
    ("The answer is: 3.5.\n", "3.5", "answer_is"),
    (r"The answer is: x \in [-2,7]", r"x \in [-2,7]", "answer_is"),
    (r"The answer is: \text{Evelyn}", r"\text{Evelyn}", "answer_is"),
    ("The answer is: Evelyn.", "Evelyn", "answer_is"),
    (r"The answer is: (-\infty, 3].", r"(-\infty, 3]", "answer_is"),
    (r"The answer is $5$ and $6$.", "5, 6", "answer_is"),
    (r"The answer is $\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}", "answer_is"),
    (r"The final answer is: $\boxed{\frac{1}{2}}$. I hope it is correct.", r"\frac{1}{2}", "answer_is"),
    ("The answer is:\n\\[ \\boxed{2\\sqrt{3}} \\]", r"2\sqrt{3}", "answer_is"),
    ("The answer is:\n$$2\\sqrt{3}$$", r"2\sqrt{3}", "answer_is"),
    (r"The answer is $3$ because $1+2=3$.", "3", "answer_is"),
    (r"The answer is 2\pi inches long.", r"2\pi", "answer_is"),
    ("The answer is $18.", "$18", "answer_is"),
    (r"The answer is: \begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "answer_is"),
    (r"#### \frac{3}{4}", r"\frac{3}{4}", "hash"),
    ("#### Step 1: add\n$1+1=2$\nThe answer is: 2", "2", "answer_is"),
    ("#### Step 1\n$1+1=2$\n#### 2", "2", "hash"),
    (r"A: $(3, 4)$", "(3, 4)", "a_colon"),
    (r"**Answer:** $\sqrt{2}$", r"\sqrt{2}", "a_colon"),
    ("### Final Answer\n\\(\\sqrt{2}\\)", r"\sqrt{2}", "a_colon"),
    (r"So **$\sqrt{2}$** it is", r"\sqrt{2}", "bold"),
    (r"Therefore $x = 1 + 1 = 2$.", "2", "last_number"),
    (r"so it must be $\frac{\pi}{2}$", r"\frac{\pi}{2}", "last_number"),
    ("no idea", "", "none"),
    ("", "", "none"),
    # run-on generations
    ("\\boxed{5}\n\nProblem: next?\n\\boxed{9}", "5", "boxed"),
    ("The answer is: 5\n\n### Instruction:\nnext\n\\boxed{9}", "5", "answer_is"),
    (r"\boxed{5}<|im_end|> \boxed{9}", "5", "boxed"),
    ("The answer is: 5\nWhat is $2+2$?\nThe answer is: 4", "5", "answer_is"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "answer", "found_by"), FORMS)
def test_form(text, answer, found_by):
    found = extract_answer(text, style="math")
    assert (found.text, found.found_by, found.math) == (answer, found_by, True)


@pytest.mark.parametrize(
    ("latex", "value"),
    [
        ("18", 18),
        (r"\$32,348", 32348),
        (r"\frac{1}{3}", Fraction(1, 3)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"-.5", Fraction(-1, 2)),
        (r"4\text{ hours}", 4),
        (r"\pi", None),
        ("(1,2)", None),
        ("1, 2", None),
        ("2516_8", None),
        ("x=5", None),
        (r"\frac{1}{0}", None),
    ],
)
def test_value_of_a_number(latex, value):
    assert number_of(latex) == value
    assert extract_answer(rf"\boxed{{{latex}}}", style="math").value == value


def test_references_that_are_latex_are_compared_as_expressions_unasked():
    solution = r"Since $\sin 60^\circ > 0$, it is $\boxed{\frac{\sqrt{3}}{2}}$."
    assert is_correct(r"\boxed{\sqrt{3}/2}", r"\frac{\sqrt{3}}{2}")
    assert is_correct(r"The answer is: \frac{\sqrt3}{2}", solution)
    assert not is_correct(r"The answer is: 0.8660254", solution)
    assert is_correct(Answer(Fraction(5), "5", "hash"), r"so $\boxed{5}$ dollars and $6$ cents")
    assert is_correct("(3, 4)", r"\left(3, 4\right)")
    assert not is_correct("4", r"\left(3, 4\right)")
    assert not is_correct("1, 2", "2", style="math")
    assert is_correct(extract_answer("x = 1, 2", style="math"), "2")  # the last number, as the fall-back says


@pytest.mark.parametrize(
    ("gold", "expression"),
    [
        (r"First \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"So $\boxed{3}$ and $\boxed{\frac{1}{2}}$.", r"3, \frac{1}{2}"),
        (r"\boxed 2", "2"),
        ("so 5\n#### 5", "5"),
        (r"\text{Evelyn}", r"\text{Evelyn}"),
        (r"\boxed{\text{A,B}}", r"\text{A,B}"),
        (r"\text{A, D, F, G, H}", r"\text{A, D, F, G, H}"),
        (r"\text{m}", r"\text{m}"),
        (r"\text{偶数}", r"\text{偶数}"),
        ("Нет", "Нет"),
        (r"\%", r"\%"),
        ("♥", "♥"),
    ],
)
def test_reference(gold, expression):
    assert gold_expression(gold) == expression


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gold_expression(""), GoldAnswerError, "holds no expression such as"),
        (lambda: gold_expression(r"\boxed{}"), GoldAnswerError, "holds no expression"),
        (lambda: gold_expression(r"\text{ }"), GoldAnswerError, "holds no expression"),
        (lambda: gold_expression(r"$\,$."), GoldAnswerError, "holds no expression"),
        (lambda: gold_expression(r"so \boxed{\frac{1}{2}"), GoldAnswerError, "holds no expression"),
        (lambda: gold_expression(5), TypeError, "must be a string, got int"),
        (lambda: is_correct("5", "", style="math"), GoldAnswerError, "holds no expression"),
        (lambda: is_correct(5, "5", style="math"), TypeError, "an Answer or a string, got int"),
        (lambda: is_correct("5", "5", style="hash"), ValueError, "unknown answer style 'hash'"),
        (lambda: extract_answer("5", style="latex"), ValueError, "unknown answer style 'latex'"),
        (lambda: is_correct("5", "5:30"), GoldAnswerError, "is not one number"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


LATEX = st.lists(
    st.sampled_from(
        [
            "\\frac",
            "\\sqrt",
            "\\boxed",
            "\\pi",
            "\\text",
            "\\begin{pmatrix}",
            "\\end{pmatrix}",
            "\\approx",
            "\\in",
            "\\cup",
            "\\left",
            "\\{",
            "\\}",
            "\\mathrm",
            "\\color",
            "\\overset",
            ":",
            ";",
            "\\\\",
            "−",
            *"&{}()[]",
            *list("$^_0123456789xyi+-*/=<>,.| \\√"),
        ]
    ),
    max_size=20,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(LATEX, LATEX)
def test_never_raises_and_knows_itself(answer, gold):
    assert equivalent(answer, gold) in (True, False)
    found = extract_answer(rf"\boxed{{{answer}}} {gold}", style="math")
    assert found.value is None or isinstance(found.value, Fraction)
    assert equivalent(gold, gold) is bool(gold.strip())


# Ways of writing the same: none of them changes what an answer is.
LOOKS = [
    "{%s}", "$%s$", r"\(%s\)", r"\displaystyle %s", r"{\displaystyle{%s}}", r"\mathbf{%s}", r"\boldsymbol{%s}",
    r"\textcolor{red}{%s}", r"{\color{blue} %s}", r"\boxed{%s}", r"\,%s\,", "%s.",
]  # fmt: skip


@pytest.mark.parametrize("look", LOOKS)
def test_looks_change_no_answer(look):
    golds = sorted({gold for _, gold in EQUAL} | set(GOLDS))
    assert [gold for gold in golds if not equivalent(look % gold, gold)] == []


# What only an answer may do: see the module.
ONE_SIDED = re.compile(r"\(?[A-C][).]|= 7$|= 2.5$|\\text\{\([A-C]\)")


def test_equality_has_no_direction():
    pairs = [pair for pair in EQUAL + DIFFERENT if not any(map(ONE_SIDED.search, pair))]
    assert len(pairs) > 600
    assert [pair for pair in pairs if equivalent(*pair) != equivalent(*reversed(pair))] == []


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=40)
    | LATEX
    | st.sampled_from([r"x \approx 1.31", "\\", "{", "}{", r"\text{", "=", ",", r"\frac"])
)
def test_every_text_that_is_not_blank_equals_itself(text):
    assert equivalent(text, text) is bool(text.strip())
    assert equivalent(text, "{x}") in (True, False)


def test_texts_that_are_too_long_equal_only_the_same_text():
    long = "x+" * 600 + "1"
    assert equivalent(long, f" {long} ")
    assert not equivalent(long, long[:-1] + "2")  # differ only behind the limit
    assert not equivalent(long, long[:1000])
    assert not equivalent("1" * 1500, "1" * 1500 + "0")


ADVERSARIAL = [
    "x_", "x_1", "√", r"\,", ", ", "a and ", r"\frac", r"\mathbf{", r"\text{", "{", "(", "[", "|", "'", "1 ", "1,", "x=",
    r"\pm", r"\overset{", r"\sqrt(", "5 m ", r"\approx", r"\color", "(A)", "cm ", r"{\rm", r"\cup", r"^{\prime", "f(",
    r"\begin{pmatrix}", r"\\[4pt]", "...", "A,", ":", "x<", r"\left", "1/",
]  # fmt: skip


@pytest.mark.parametrize("piece", ADVERSARIAL)
def test_no_pattern_goes_back_and_forth(piece, monkeypatch):
    monkeypatch.setattr(symbolic, "TIME_LIMIT", 0.2)  # of the other process; what is measured is this one
    for text in (piece * 1000, piece * 200 + "!", "1" + piece * 300, r"\text{A" + piece * 300 + "}"):
        start = time.process_time()
        equivalent(text[:1000], "1" + text[1:999])
        assert time.process_time() - start < 5  # of this process alone; an exponential pattern takes years


@settings(max_examples=60, deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(1, 999), st.integers(0, 3))
def test_numbers_are_exact(numerator, denominator, form):
    value = Fraction(numerator, denominator)
    written = [rf"\frac{{{numerator}}}{{{denominator}}}", f"{numerator}/{denominator}", rf"$\dfrac{{{numerator}}}{{{denominator}}}$", rf"\frac{{{2 * numerator}}}{{{2 * denominator}}}"][form]  # fmt: skip
    assert number_of(written) == value
    assert equivalent(written, str(value))
    assert not equivalent(written, str(value + Fraction(1, 10**9)))


@pytest.mark.parametrize(
    "text",
    [
        "$" * 20_000,
        "\\[" * 20_000,
        "\\boxed{" * 2000,
        "The answer is: $x " * 1000,
        "\\frac{" * 5000,
        "1," * 20_000,
    ],
    ids=lambda text: text[:12],
)
def test_degenerate_text_is_read_quickly(text):
    start = time.process_time()
    answer = extract_answer(text, style="math")
    assert not equivalent(answer.text, "1")
    assert time.process_time() - start < 10  # of this process alone; a quadratic pattern takes minutes


def test_a_comparison_that_hangs_ends_and_the_next_one_works(monkeypatch, caplog):
    monkeypatch.setattr(symbolic, "TIME_LIMIT", 1.0)
    hard = r"\int_0^1 \frac{\sin(x^{x+1}) \ln(1+x^5)}{\sqrt{1+x^7}} + \sum_{k=1}^{100000} \frac{1}{k^{k}}"
    assert not symbolic.symbolically_equal("(x+y+1)^{9999}", "(x+y+2)^{9999}+" + hard)
    assert "was not decided within 1 s" in caplog.text
    monkeypatch.undo()
    assert symbolic.symbolically_equal(r"\frac{2\pi}{4}", r"\frac{\pi}{2}")


def test_works_in_threads_and_in_forked_processes():
    results = []
    pairs = [(rf"\frac{{{2 * n}}}{{7}}\pi + x_1", rf"x_1 + \frac{{{4 * n}\pi}}{{14}}") for n in range(1, 9)]
    threads = [
        threading.Thread(target=lambda: results.extend(equivalent(*pair) for pair in pairs)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 24
    code = (
        "import os; from mce_llm.eval.judging.expressions import equivalent; assert equivalent('2\\\\pi/4', '\\\\pi/2')\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if equivalent('3\\\\pi/6', '\\\\pi/2') else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0 and equivalent('4\\\\pi/8', '\\\\pi/2')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG)


def test_a_worker_that_died_is_replaced():
    assert equivalent(r"\frac{6\pi}{4}", r"\frac{3\pi}{2}")
    symbolic._worker.process.kill()
    symbolic._worker.process.wait()
    assert not symbolic.symbolically_equal("x+x", "2x")  # undecided
    assert symbolic.symbolically_equal("x+x", "2x")


def test_without_math_verify_the_message_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "latex2sympy2_extended.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(symbolic, "_worker", None)
    with pytest.raises(
        EvaluationError, match=r"math-verify.*not here.*pip install -e '.*\[eval\]' brings it"
    ):
        symbolic.check_math_verify()
    with pytest.raises(EvaluationError, match="math-verify"):
        equivalent("x+x+1", "2x+1")
    assert equivalent("12", "12.0")  # numbers need nothing


def test_the_worker_ends_with_its_process():
    code = "from mce_llm.eval.judging import symbolic as s; s.symbolically_equal('x', 'y'); print(s._worker.process.pid)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(result.stdout), 0)
