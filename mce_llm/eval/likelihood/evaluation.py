"""Likelihood of the reference solutions of a data set: `accelerate launch eval/likelihood.py --model MODEL --output DIR`.

The prompt, the solution behind it and the token that ends it are those of training. Each process scores its share of the
questions that are still open, and writes every line as soon as its batch is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from mce_llm.data import PROMPTS, PromptTemplate
from mce_llm.data.errors import DataError, problem_list
from mce_llm.eval.data_titles import data_title
from mce_llm.eval.dtype_hints import precision_hints
from mce_llm.eval.errors import EvaluationError
from mce_llm.eval.fingerprints import fingerprint, model_fingerprint
from mce_llm.eval.items import Item
from mce_llm.eval.likelihood.items import BINS, GROUPS, item_of
from mce_llm.eval.likelihood.lines import wrong_line
from mce_llm.eval.likelihood.references import Reference, encode_references
from mce_llm.eval.likelihood.scoring import Scorer
from mce_llm.eval.likelihood.settings import LikelihoodConfig
from mce_llm.eval.likelihood.summary import (
    TASK,
    LikelihoodSummary,
    print_likelihood,
    summarize_likelihood,
)
from mce_llm.eval.loading import load_model_and_tokenizer
from mce_llm.eval.output_directory import OutputDirectory
from mce_llm.eval.presets import check_prompt, prompt_identity
from mce_llm.eval.results import PACKAGES
from mce_llm.eval.session import (
    from_main_process,
    load_questions,
    run_evaluation_script,
    run_session,
    say_skipped,
)
from mce_llm.eval.tasks import Task
from mce_llm.running.installation import installed_versions
from mce_llm.running.messages import counted
from mce_llm.running.processes import join_processes, say
from mce_llm.running.visible_text import visible

_SHOWN = 5
_VERSION = 1  # of what the groups are; raise it when the same texts would be divided otherwise
LIKELIHOOD = Task(TASK, None, str, "'18', '... #### 18' or '... \\\\boxed{18}'", solutions=True)
"""Reference solutions, whatever their answers are."""


def evaluate_likelihood(
    config: LikelihoodConfig, model: Any = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> LikelihoodSummary:
    """Score the reference solution of every question, and write the results.

    Where the output directory holds scores of the same model under the same conditions, only the missing ones are
    computed. With several processes each must call this; each gets the summary.

    Args:
        config: The options.
        model: Use this model instead of loading `config.model`, which then only names it. Its dtype counts.
        tokenizer: Its tokenizer, a fast one; given exactly where `model` is.

    Returns:
        The summary that was written to `summary.json`.

    Raises:
        EvaluationError: If the model or the output directory cannot be used.
        UnsupportedModelError: If the model is no causal language model whose head is understood.
        DataError: If the questions cannot be used, or are too long for the model.
        LaunchError: If processes that were launched together each work alone.
    """
    if (model is None) != (tokenizer is None):
        raise EvaluationError("pass model and tokenizer together, or neither of them")
    state = join_processes()
    output = OutputDirectory(config.output, wrong_line)
    asked = load_questions(LIKELIHOOD, config, output, on_hub=model is None)
    config, questions = asked.config, asked.questions
    in_memory = model is not None
    if model is None or tokenizer is None:
        model, tokenizer = load_model_and_tokenizer(
            config.model, config.dtype, state.device, revision=config.revision
        )
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if not in_memory and state.is_main_process:
        for hint in precision_hints(config, dtype, state.device):
            say(hint)
    scorer = Scorer(model.eval())
    template = scored_template(asked.template)
    check_prompt(template, tokenizer)
    references = encode_references(questions.rows, template, tokenizer)
    references, too_long = _fitting(references, model, config)
    skipped = (*questions.skipped, *too_long)
    _say_unmarked(references)
    prompt = prompt_identity(template, tokenizer) | {"completion_prefix": template.completion_prefix}
    scoring = _scoring(references, tokenizer)
    hashes = from_main_process(
        state,
        lambda: {
            "prompt": fingerprint(prompt),
            "data": fingerprint([[reference.question, reference.gold] for reference in references]),
            "scoring": fingerprint(scoring),
            "model": model_fingerprint(model),
        },
    )
    versions = installed_versions(PACKAGES)
    record = asked.known | {
        "dtype": dtype,
        "prompt": prompt,
        "scoring": scoring,
        "hashes": hashes,
        "versions": versions,
        **({"skipped": list(skipped)} if skipped else {}),
    }
    batch_tokens = config.tokens_at_a_time(state.device.type)

    def finish(seconds: float, kept: list[Item]) -> dict[str, Any]:
        settings = {
            **{key: getattr(config, key) for key in ("model", "data", "prompt")},
            "split": config.split_name,
            "dtype": dtype,
            "batch_tokens": batch_tokens,
            "processes": state.num_processes,
            "hashes": hashes,
            "versions": versions,
            "continued": len(kept),
            "skipped": len(skipped),
        }
        items = output.merge(len(references), 1)
        return asdict(summarize_likelihood(items, seconds, kept, settings))

    title = visible(data_title(config.recorded(), TASK), one_line=True)
    return LikelihoodSummary(
        **run_session(
            output,
            record,
            state,
            overwrite=config.overwrite,
            work=lambda kept: _score_share(scorer, references, kept, batch_tokens, output, state, title),
            finish=finish,
        )
    )


def scored_template(template: PromptTemplate) -> PromptTemplate:
    """How questions are put in front of solutions: as at training, for the prompts that there is training with.

    Args:
        template: As at evaluation.

    Returns:
        The same, without the suffix that MetaMath adds at evaluation alone.
    """
    return replace(template, evaluation_suffix="") if template.name in PROMPTS else template


def _fitting(
    references: list[Reference], model: Any, config: LikelihoodConfig
) -> tuple[list[Reference], list[str]]:
    """The references that the model can read, and the others in words; refused unless they are to be skipped."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = [max([*reference.prompt_ids, *reference.completion_ids]) for reference in references]
    if max(ids) >= rows:
        raise EvaluationError(
            f"question {ids.index(max(ids)) + 1} has token id {max(ids)}, but the model knows ids below {rows}: the tokenizer "
            "does not belong to the model"
        )
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is None:
        return references, []
    kept = [reference for reference in references if reference.length <= longest]
    too_long = [
        f"question {number}: {reference.length} tokens with its prompt, of {longest} positions"
        for number, reference in enumerate(references, start=1)
        if reference.length > longest
    ]
    if too_long and (config.unreadable_references == "refuse" or not kept):
        advice = (
            "leave them out with --unreadable_references skip" if kept else "choose another model or prompt"
        )
        raise DataError(
            f"{config.data}: {len(too_long)} of {counted(len(references), 'reference solution')} are longer than the model has "
            f"positions:{problem_list(too_long[:_SHOWN], len(too_long))}\n{advice}"
        )
    say_skipped(tuple(too_long), "longer than the model has positions")
    return kept, too_long


def _say_unmarked(references: Sequence[Reference]) -> None:
    unmarked = sum(not reference.groups["answer"].any() for reference in references)
    if unmarked:
        say(
            f"note: {counted(unmarked, 'solution')} of {len(references)} mark no final answer by '#### …', \\boxed{{…}} or 'The "
            "answer is: …': they have no tokens in the group answer"
        )


def _scoring(references: Sequence[Reference], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the scores are of, for `config.json` and its hash."""
    return {
        "version": _VERSION,
        "groups": list(GROUPS),
        "bins": BINS,
        "calculator_notes": "left out, as in training",
        "ends": sorted({str(tokenizer.decode(reference.completion_ids[-1:])) for reference in references}),
        "tokens": fingerprint([reference.completion_ids for reference in references]),
    }


def _score_share(
    scorer: Scorer,
    references: Sequence[Reference],
    kept: Sequence[Item],
    batch_tokens: int,
    output: OutputDirectory,
    state: PartialState,
    title: str,
) -> None:
    """Score every `num_processes`-th question that is open, the longest first."""
    done = {item["index"] for item in kept}
    waiting = [index for index in range(len(references)) if index not in done]
    waiting.sort(key=lambda index: (-references[index].length, index))
    share = waiting[state.process_index :: state.num_processes]
    alone = state.num_processes == 1
    whole = [item["groups"]["all"] for item in kept] if alone else []
    nats, tokens = sum(group["nats"] for group in whole), sum(group["tokens"] for group in whole)
    bar = tqdm(
        total=len(share) + len(whole),
        initial=len(whole),
        desc=title if alone else f"{title}, process 1 of {state.num_processes}",
        unit="question",
        disable=not state.is_main_process,
    )
    with bar, output.open_rank_file(state.process_index) as file:
        for batch in batches(share, [reference.length for reference in references], batch_tokens):
            chosen = [references[index] for index in batch]
            scored = scorer.score(
                [reference.prompt_ids for reference in chosen],
                [reference.completion_ids for reference in chosen],
            )
            for index, reference, scores in zip(batch, chosen, scored, strict=True):
                item = item_of(index, reference.question, reference.gold, reference.groups, scores)
                output.write_item(file, item)
                nats, tokens = nats + item["groups"]["all"]["nats"], tokens + len(scores.nats_T)
            bar.set_postfix(nats_per_token=f"{nats / tokens:.4f}", refresh=False)
            bar.update(len(batch))


def batches(order: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Cut an order into batches whose tokens, padding included, are at most so many.

    Args:
        order: Indices into `lengths`, the longest first.
        lengths: Tokens of each.
        most: Of a batch; one that is longer is a batch by itself.

    Yields:
        The indices of a batch.
    """
    start = 0
    while start < len(order):
        end = start + max(1, most // lengths[order[start]])
        yield list(order[start:end])
        start = end


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for a problem that the message explains, 130 after Ctrl-C."""
    return run_evaluation_script(
        LikelihoodConfig,
        arguments,
        description="Likelihood of the reference solutions of a data set under a language model: nats per token, by kind of token.",
        evaluate=evaluate_likelihood,
        show=lambda summary, options: print_likelihood(
            summary, data_title(options.recorded(), TASK), Path(options.output)
        ),
        kept=lambda output: (
            f"the scores of {counted(OutputDirectory(output, wrong_line).written(), 'question')}"
        ),
        needs_less_memory="use a smaller batch_tokens: the same command goes on with the scores that are kept",
    )
