"""The `mce-llm` command: a thin face; what the subcommands do lives in modules of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mce_llm import __version__
from mce_llm.commands.comparing import compare, report
from mce_llm.commands.problems import problems as _problems
from mce_llm.commands.run_groups import GroupedCommand
from mce_llm.running.noise import silence_known_noise
from mce_llm.running.terminal import DataConsole
from mce_llm.running.visible_text import visible

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune language models with matrix cross-entropy, and find out whether it helped.",
)


# Whatever is no option of the command is a setting of the recipe.
_WITH_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mce-llm {__version__}")
        raise typer.Exit


def _print_settings(wanted: bool) -> None:
    if wanted:
        from mce_llm.commands.settings_list import (
            settings_list,  # here: it brings transformers, which takes seconds
        )

        typer.echo(settings_list())
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune language models with matrix cross-entropy, and find out whether it helped."""
    silence_known_noise()


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Where data, models and results go.")] = Path(
        "runs/quickstart"
    ),
    fresh: Annotated[bool, typer.Option("--fresh", help="Run stages again that are finished.")] = False,
    steps_scale: Annotated[
        float, typer.Option(min=0.001, help="Multiply the training steps; below 1 for a quick look.")
    ] = 1.0,
) -> None:
    """Train a small Llama on made-up arithmetic, fine-tune it with and without MCE, evaluate both.

    Takes a few minutes on two CPU cores; needs no GPU and no network.
    """
    from mce_llm.commands.quickstart import run_quickstart
    from mce_llm.running.folder import OutputError

    with _problems("interrupted; the same command goes on after the last finished stage"):
        try:
            run_quickstart(output, fresh=fresh, steps_scale=steps_scale)
        except OSError as error:
            raise OutputError(f"cannot write to {output}: {error.strerror or error}") from error


@app.command()
def doctor() -> None:
    """Check versions, devices and optional packages, and say what to do about each problem."""
    from mce_llm.commands.doctor import examine, print_findings

    findings = examine()
    print_findings(findings, DataConsole(markup=True))
    raise typer.Exit(1 if any(finding.level == "error" for finding in findings) else 0)


@app.command(context_settings=_WITH_SETTINGS)
def finetune(
    context: typer.Context,
    config: Annotated[
        str,
        typer.Argument(
            help="A recipe's YAML file, or the name of one that comes along: llemma7b_metamath_mce …"
        ),
    ],
    settings: Annotated[
        bool,
        typer.Option(
            "--settings",
            callback=_print_settings,
            is_eager=True,
            help="List every setting of a recipe with its default, and launch nothing.",
        ),
    ] = False,
) -> None:
    """Run a fine-tuning recipe: accelerate launch recipes/finetune.py --config CONFIG.

    Options of accelerate launch and settings of the recipe may follow, in any order:

        mce-llm finetune llemma7b_metamath_mce --config_file zero3 --num_processes 4 --output_dir runs/mine

    mce-llm finetune --settings lists the settings; accelerate launch --help lists the launcher's options.

    --config_file names a launch file, or one that comes along: ddp, zero2, zero3, zero3_offload, fsdp2, cpu. The exit
    code is the recipe's: 2 for a problem that its message explains, 130 after Ctrl-C, 143 for "the same command goes on".
    """
    from mce_llm.commands.launch import run_launch

    with _problems():
        raise typer.Exit(run_launch(config, context.args))


@app.command(context_settings=_WITH_SETTINGS)
def study(
    context: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            metavar="STUDY", help="A study file, or the name of one that comes along: quickstart …"
        ),
    ],
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Print the commands and what of them is done; run and write nothing."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Where everything goes; default: where the file says.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="ARM,…", help="Run these arms now, the others another time.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="SEED,…", help="Run these training seeds now, the others another time."),
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Make these evaluations now, the others another time."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs at the same time, each on its share of the GPUs or cores.")
    ] = 1,
    allow_changes: Annotated[
        bool,
        typer.Option(
            "--allow_changes",
            "--allow-changes",
            help="Go on although recipes, settings or data have changed; said under the tables.",
        ),
    ] = False,
) -> None:
    """Train and evaluate the arms of a study with several seeds, and compare them: what is missing of it.

    The study file names arms (each a recipe with settings changed), training seeds, evaluations and the baseline. Stopped
    or killed anywhere, the same command goes on. What follows is set for all runs: settings of the recipes, options of
    accelerate launch, and options of evaluations by their names:

        mce-llm study my_study.yaml --plan --model_name_or_path DIR --gsm8k.data FILE --num_processes 4

    --evaluations.OPTION sets an option of all evaluations. The exit code is 0 where all is done, 2 for a problem that its
    message explains, that of a training or evaluation that failed, 130 after Ctrl-C, 143 after SIGTERM.
    """
    from mce_llm.commands.study import part_given, run_command

    with _problems("interrupted; the same command goes on"):
        code = run_command(
            file,
            context.args,
            output=output,
            part=part_given(only, seeds, evaluate),
            jobs=jobs,
            plan=plan,
            allow_changes=allow_changes,
        )
    raise typer.Exit(code)


@app.command("copy")
def copy_files(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="recipes, eval, vision, or single files of them; everything by default."),
    ] = None,
    to: Annotated[Path, typer.Option(help="The folder to copy into.")] = Path(),
    listed: Annotated[bool, typer.Option("--list", help="Print what there is, and copy nothing.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of the same name that were changed.")
    ] = False,
) -> None:
    """Copy the recipes, configurations and scripts that come with mce-llm, to launch and to edit them."""
    from mce_llm.commands.copying import chosen_names, copy_shipped, print_copied

    with _problems():
        if listed:
            for name in chosen_names(names or []):
                typer.echo(visible(name, one_line=True))
        else:
            print_copied(copy_shipped(names or [], to, overwrite=overwrite))


@app.command(context_settings=_WITH_SETTINGS)
def validate(
    context: typer.Context,
    config: Annotated[
        str, typer.Argument(help="The recipe's YAML file, or the name of one that comes along.")
    ],
    gpus: Annotated[
        int | None, typer.Option(help="GPUs that it is to run on; default: this machine's.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="Memory of each GPU, GiB; default: as this machine's.")
    ] = None,
    host_memory: Annotated[
        float | None, typer.Option(help="Memory of the host, over all machines, GiB; default: not checked.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="One engine for the memory plan, see plan.")] = None,
    max_examples: Annotated[
        int, typer.Option(min=1, help="Look at this many examples of each data set at most.")
    ] = 20_000,
    samples: Annotated[int, typer.Option(min=0, help="Examples to show.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Examine a recipe before it runs: settings, files, tokenizer, data, model, one step in small, memory.

    All problems are listed at once. Nothing is written into output_dir, no weights are loaded. The exit code is 0 where
    the recipe can run, 1 where something has to change, 2 where the settings cannot be parsed. Settings of the recipe
    may follow, as on its own command line; mce-llm finetune --settings lists them.
    """
    from mce_llm.commands.launch import recipe_file
    from mce_llm.commands.validate import run_validate

    with _problems():
        code = run_validate(
            recipe_file(config),
            context.args,
            num_gpus=gpus,
            memory_gib=memory,
            engine=engine,
            host_memory_gib=host_memory,
            most_examples=max_examples,
            num_samples=samples,
            json_output=as_json,
        )
    raise typer.Exit(code)


@app.command(context_settings=_WITH_SETTINGS)
def plan(
    context: typer.Context,
    config: Annotated[
        str, typer.Argument(help="The recipe's YAML file, or the name of one that comes along.")
    ],
    gpus: Annotated[int, typer.Option(help="GPUs, over all machines.")],
    memory: Annotated[float, typer.Option(help="Memory of each GPU, GiB (an 80 GB card has about 79).")],
    host_memory: Annotated[
        float | None, typer.Option(help="Memory of the host, over all machines, GiB; default: not checked.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="One of ddp, zero2, zero3, fsdp2, zero3_offload; default all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")] = False,
) -> None:
    """Work out how much memory a recipe needs on each GPU, which engine fits, and how to launch it.

    No weights are loaded and no GPU is needed. Settings of the recipe may follow, as on its own command line:

        mce-llm plan recipes/llemma7b_metamath_mce.yaml --gpus 8 --memory 79 --per_device_train_batch_size 2
    """
    from mce_llm.commands.launch import recipe_file
    from mce_llm.commands.plan import run_plan

    with _problems():
        run_plan(
            recipe_file(config),
            context.args,
            num_gpus=gpus,
            memory_gib=memory,
            engine=engine,
            json_output=as_json,
            host_memory_gib=host_memory,
        )


@app.command()
def merge(
    adapter: Annotated[
        Path, typer.Argument(help="Folder of the adapter: a run's output_dir, or a checkpoint in it.")
    ],
    output: Annotated[Path, typer.Argument(help="Folder for the merged model; must not exist.")],
    base: Annotated[
        str | None, typer.Option(help="Base model, where it is not the one that the adapter names.")
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            help="Branch, tag or commit of the base model; default: the one that it was trained on."
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Dtype of the merged weights: auto (as the base is stored), float32, bfloat16, float16."
        ),
    ] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the Python code that the base model brings.")
    ] = False,
) -> None:
    """Merge LoRA, DoRA or rsLoRA adapters into their base model: a stock model in safetensors.

    Takes memory and disk for the base model's weights in that dtype, on the CPU.
    """
    from mce_llm.finetuning.merging import merge_adapters

    with _problems():
        merged = merge_adapters(
            adapter,
            output,
            base=base,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
    typer.echo(visible(str(merged), one_line=True))


app.command(cls=GroupedCommand)(compare)
app.command(cls=GroupedCommand)(report)
