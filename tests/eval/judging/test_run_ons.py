"""Where a solution ends: further questions are cut off, and parts, restatements and corrections of the same are not."""

import pytest

from mce_llm.eval.answers import extract_answer, is_correct

PARTS = [
    "Let me check 2 examples.\nExample 1: 3*6=18\nThe answer is 18.",
    "There are 2 tasks.\nTask 1: 16-3-4=9\nTask 2: 9*2=18\nThe answer is 18.",
    "We split it in 2.\n**Problem 1:** eggs left: 9\n**Problem 2:** money: 18\n\\boxed{18}",
    "Let's restate it with its 2 facts.\nProblem: Janet has 16 eggs. How much does she make?\nSolution: 9*2=18. The answer is 18.",
    "Problem: Janet has 16 eggs.\nQuestion: How much does she make?\nSolution: 9*2=18. The answer is 18.",
    "### Problem\nJanet has 16 eggs. How much does she make?\n### Solution\n9*2=18\n#### 18",
    "Question 1: How many eggs are left? 9\nQuestion 2: How much are they? 18\nThe answer is 18.",
    "I will do 2 exercises.\nExercise 1: 5+4 = 9\nThe answer is 9.\nExercise 2: 9*2 = 18\nThe answer is 18.",
    "Input: 16 eggs, $2\nOutput: 9*2 = 18\n#### 18",
    "We know that 16-3-4 = 9.\nQuestion: how much does she make?\n9*2=18. The answer is 18.",
    "16-3-4 = 9 eggs.\nQ: And how much are they?\nA: 9*2 = 18.\n\\boxed{18}",
    "She sells \\boxed{9} eggs.\n\nHow much does she make?\n\n9*2 = \\boxed{18}",
    "She sells \\boxed{9} eggs.\n\nCalculate the money: 9*2 = \\boxed{18}",
    "Here are 3 examples:\n**Example 1:** 1*2=2\n**Example 2:** 9*2=18\n**Answer:** 18",
]
FURTHER = [
    "The answer is 18.\n\nExample 2: Tom has 3 apples and 4 more.\nThe answer is 7",
    "#### 18\n\nProblem 2: Tom has 3 apples. How many?\n#### 3",
    "16-3-4 = 9, 9*2=18\n\nProblem 2: Tom has 3 apples. How many?\n3",
    "Task 1: 9*2=18\nThe answer is 18.\nTask 2: Tom has 3 apples. How many are left?\nThe answer is 3.",
    "9*2 = 18\nUser: thanks, 5 stars\nAssistant: 7",
    "She makes 18 dollars.\n\nQuestion: Tom has 3 apples. How many?\nAnswer: 3",
    "\\boxed{18}\n\nFind $x$ if $x + 2 = 5$.\n\n\\boxed{3}",
    "\\boxed{18}\n\nIf $x+2=5$, what is $x$?\n\n\\boxed{3}",
    "\\boxed{18}\n\n### Problem 2\nTom has 3.\n\\boxed{3}",
]


@pytest.mark.parametrize("text", PARTS + FURTHER)
@pytest.mark.parametrize("style", [None, "math"])
def test_a_further_question_is_one_that_is_posed(text, style):
    assert is_correct(extract_answer(text, style), "18", style)


CORRECTIONS = [
    "Oops.", "Oops, I forgot the bag.", "No, that misses a bag.", "No. She eats 3.", "Wait", "wait, that's wrong", "Sorry, my mistake.",
    "Hmm, I misread it.", "Hold on, 3 are eaten.", "That's not right.", "That is incorrect.", "This is wrong.", "I made a mistake.",
    "I forgot the 3 eggs.", "Correction:", "Actually, she eats 3.", "Scratch that.", "On second thought, she bakes with 4.",
    "Let me re-check.", "Let me redo this.", "My bad: 3 are eaten.", "But that can't be right.", "However, I forgot the 4.",
    "Recalculating: 9 * 2", "The correct answer is", "It should be 9 * 2.", "Mistake! 9 * 2", "There is an error.",
    "That's not right. How many eggs are left? 9.", "Not quite: she bakes with 4.",
]  # fmt: skip
STORIES = [
    "Tom wants pears instead of apples. He pays 3.",
    "Tom got 3 wrong. He needs 4.",
    "They wait for 3 hours.",
    "Nobody knows. Nora has 4.",
    "The shop made 7 corrections to its price list. It asks 4.",
    "Tom actually has 3 pears.",
    "Let me solve another one.",
    "Next question. How much is wrong? That is wrong: 3.",
    "",
]


@pytest.mark.parametrize("words", CORRECTIONS)
@pytest.mark.parametrize("style", [None, "math"])
def test_a_correction_takes_the_first_back(words, style):
    for between in (f"\n{words}\n", f"\n\n**{words}** 9 * 2\n", f". {words}\n"):
        assert is_correct(extract_answer(f"#### 20{between}#### 18", style), "18", style), between


@pytest.mark.parametrize("words", STORIES)
@pytest.mark.parametrize("style", [None, "math"])
def test_a_story_does_not(words, style):
    assert is_correct(extract_answer(f"#### 18\n\n{words}\n#### 3", style), "18", style)


def test_corrections_of_corrections():
    assert extract_answer("#### 20\nOops.\n#### 19\nWait, no.\n#### 18\n\nTom has 3.\n#### 3").value == 18
