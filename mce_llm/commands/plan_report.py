"""The memory plan as people read it: engines side by side, the arithmetic of one, what to run or what to change."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mce_llm.commands.training_plan import batch_of, best_batch, cpu_note, launch_command, plan_notes
from mce_llm.finetuning.configuration import Recipe
from mce_llm.planning import ENGINES, GIB, TIGHT, EnginePlan, MemoryPlan, Phase, PlanningError

_BUFFERS = ("DDP buckets", "reduce bucket", "gathered", "attention mask")
_MOMENTS: dict[Phase, str] = {
    "forward": "end of forward: activations, loss",
    "backward": "backward: activations, a layer",
    "step": "optimizer's step",
}
_ROWS = ("weights", "master weights", "gradients", "optimizer states")


def print_plan(
    plan: MemoryPlan, recipe: Recipe, console: Console, *, config: str, overrides: list[str]
) -> None:
    """Print the plan.

    Args:
        plan: The plan.
        recipe: What it is for.
        console: Where to.
        config: The recipe's file, for the command line.
        overrides: Settings that were given beside it.
    """
    print_subject(plan, console)
    console.print(engines_table(plan, console.width))
    shown = (
        plan.recommended
        or min(
            (item for item in plan.engines if item.refusal is None),
            key=lambda item: item.peak,
            default=plan.engines[0],
        ).engine
    )
    console.print()
    console.print(arithmetic_table(plan.of(shown), plan.devices))
    for item in plan.engines:
        if item.refusal:
            console.print(f"[yellow]{item.engine}[/] cannot run this recipe: {escape(item.refusal)}")
    for note in filter(None, [cpu_note(recipe), *plan_notes(plan)]):
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)
    if plan.capacity is None:
        return
    if plan.recommended is not None:
        _print_launch(plan, recipe, console, config, overrides)
    if plan.remedies:
        _print_remedies(plan, console)


def print_subject(plan: MemoryPlan, console: Console) -> None:
    """Two lines: the model, and the run."""
    model, run = plan.model, plan.training
    trained = "all trained" if model.trained == model.parameters else f"{model.trained:,} trained"
    console.print(
        f"[bold]{escape(model.name)}[/]: {escape(model.model_type)}, {model.parameters:,} parameters, {trained}; "
        f"{model.num_layers} layers, width {model.hidden_size:,}, vocabulary {model.vocabulary:,}"
        f"{', tied' if model.tied else ''}",
        highlight=False,
    )
    products = f"products {run.mixed}, " if run.mixed and run.mixed != run.dtype else ""
    frozen = f", frozen weights {run.quantization}" if run.quantization else ""
    loss = {"label_smoothing": "label smoothing", "emo": "CE + EMO"}.get(run.loss.loss, "CE")
    loss = f"CE + MCE ({run.loss.kind})" if run.loss.weight else loss
    console.print(
        f"micro-batch {run.micro_batch} × {run.length:,} tokens, weights {run.dtype}{frozen}, {products}{run.optim}, "
        f"attention {run.attention}, gradient checkpointing {'on' if run.checkpointing else 'off'}, loss {loss}",
        highlight=False,
    )


def engines_table(plan: MemoryPlan, width: int) -> Table:
    """Engines × terms, GiB on one GPU."""
    gpus = f"{plan.devices} GPU{'s' * (plan.devices > 1)}"
    room = "" if plan.capacity is None else f" of {plan.capacity / GIB:g} GiB"
    table = Table(title=f"GiB on each of {gpus}{room}", title_justify="left", expand=False, pad_edge=False)
    narrow = width < 96
    table.add_column("", no_wrap=not narrow)
    for item in plan.engines:
        name = engine_label(item.engine, plan.devices)
        name = name.replace("_", "\n") if narrow else name
        style = "bold green" if item.engine == plan.recommended else ""
        table.add_column(name, justify="right", header_style=style, no_wrap=True)
    for name in _ROWS:
        table.add_row(name, *(_amount(_sum(item, (name,))) for item in plan.engines))
    table.add_row("engine's buffers, gathered", *(_amount(_sum(item, _BUFFERS)) for item in plan.engines))
    for phase, label in _MOMENTS.items():
        table.add_row(
            label,
            *(_moment(item, phase) for item in plan.engines),
            end_section=phase == "step",
        )
    table.add_row("reserve: CUDA, fragmentation", *(_amount(item.reserve) for item in plan.engines))
    table.add_row(
        Text("peak", style="bold"), *(_peak(item) for item in plan.engines), end_section=plan.capacity is None
    )
    if plan.capacity is not None:
        table.add_row("room left", *(_room(item) for item in plan.engines))
        rows = (f"{item.largest_micro_batch or '–'}" for item in plan.engines)
        table.add_row("largest micro-batch that fits", *rows)
    table.add_row(
        "peak with stock cross-entropy",
        *(Text(_amount(item.stock_peak or 0), style="dim") for item in plan.engines),
    )
    if any(item.host for item in plan.engines):
        host = plan.engines[0].host_capacity
        of = "" if host is None else f" of {host / GIB:,.4g}"
        table.add_row(f"host memory, all GPUs{of}", *(_host(item) for item in plan.engines))
    table.caption = (
        "bold: the moment of the peak; of the three moments the largest counts. All with this package's loss, which has "
        "no logits in full; stock: logits in full, as other trainers have them"
    )
    table.caption_justify = "left"
    return table


def engine_label(engine: str, devices: int) -> str:
    """Its name; ddp of one process is just one GPU."""
    return "single" if engine == "ddp" and devices == 1 else engine


def _sum(plan: EnginePlan, names: tuple[str, ...]) -> float:
    return sum(term.bytes for term in plan.terms if term.name in names and term.phase == "always")


def _amount(size: float) -> str:
    gib = size / GIB
    if not size:
        return "–"
    return f"{gib:,.1f}" if gib >= 0.05 else f"{gib:.2f}" if gib >= 0.005 else "0.00"


def _moment(plan: EnginePlan, phase: Phase) -> Text:
    return Text(_amount(plan.sum_of(phase)), style="bold" if phase == plan.moment else "dim")


_STYLES = {None: "bold", "fits": "bold green", "tight": "bold yellow", "too large": "bold red"}


def _peak(plan: EnginePlan) -> Text:
    return Text(_amount(plan.peak), style=_STYLES[plan.verdict])


def _host(plan: EnginePlan) -> Text:
    enough = plan.host_capacity is None or plan.host <= plan.host_capacity
    return Text(_amount(plan.host), style="" if enough else "red")


def _room(plan: EnginePlan) -> Text:
    if plan.refusal:
        return Text("refused", style="yellow")
    assert plan.capacity is not None
    left = (plan.capacity - plan.peak) / GIB
    if left < 0:
        return Text(f"−{-left:,.1f}", style="red")
    if plan.peak > (1 - TIGHT) * plan.capacity:
        return Text(f"tight {left:,.1f}", style="yellow")
    return Text(f"{left:,.1f}", style="green")


def arithmetic_table(plan: EnginePlan, devices: int) -> Table:
    """Every line of one engine with its formula."""
    table = Table(
        title=f"{engine_label(plan.engine, devices)}: the arithmetic for each GPU",
        title_justify="left",
        pad_edge=False,
        show_edge=False,
        box=None,
    )
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("how it comes about", overflow="fold", style="dim")
    labels: dict[Phase, str] = {
        "always": "always",
        "forward": "end of the forward pass",
        "backward": "backward pass",
        "step": "optimizer's step",
        "host": "on the host",
    }
    for phase, label in labels.items():
        terms = [term for term in plan.terms if term.phase == phase]
        if not terms:
            continue
        counted = phase in ("always", plan.moment)
        mark = "" if counted or phase == "host" else ", below the peak's moment"
        table.add_row(
            _amount(sum(term.bytes for term in terms)), Text(label, style="bold"), mark.lstrip(", ")
        )
        for term in terms:
            table.add_row(_amount(term.bytes), f"  {term.name}", term.formula)
    return table


def _print_launch(
    plan: MemoryPlan, recipe: Recipe, console: Console, config: str, overrides: list[str]
) -> None:
    assert plan.recommended is not None
    chosen = plan.of(plan.recommended)
    console.print()
    console.print(
        f"[bold green]{engine_label(chosen.engine, plan.devices)}[/] ({ENGINES[chosen.engine].about}): "
        f"{_amount(chosen.peak)} of {(plan.capacity or 0) / GIB:g} GiB{', tight' if chosen.verdict == 'tight' else ''}",
        highlight=False,
    )
    best = best_batch(recipe, plan.devices, chosen)
    divided = True
    try:
        batch = batch_of(recipe, plan.devices)
        console.print(
            f"batch: {batch.total} rows a step = {plan.devices} GPU{'s' * (plan.devices > 1)} × {batch.rows} rows × "
            f"{_steps(batch.accumulation)}",
            highlight=False,
        )
    except PlanningError as error:
        console.print(f"[red]{escape(str(error))}[/]", highlight=False)
        divided = False
    if best is not None and best.rows != recipe.training.per_device_train_batch_size:
        console.print(
            f"largest micro-batch that fits and divides the batch: --per_device_train_batch_size {best.rows} "
            f"({_steps(best.accumulation)}){_fewer(best.accumulation, plan, chosen)}",
            highlight=False,
        )
    if chosen.host:
        console.print(f"host memory: {_amount(chosen.host)} GiB over all machines", highlight=False)
    if not divided:  # the recipe as it is would refuse to start
        if best is None:
            return
        overrides = [*overrides, "--per_device_train_batch_size", str(best.rows)]
    console.print(
        launch_command(config, overrides, chosen.engine, plan.devices),
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _print_remedies(plan: MemoryPlan, console: Console) -> None:
    assert plan.capacity is not None
    console.print()
    what = (
        "[bold red]nothing fits" if plan.recommended is None else "[bold yellow]without offload nothing fits"
    )
    if plan.recommended is not None and not ENGINES[plan.recommended].offloads:
        what = "[bold yellow]nothing fits with room to spare"
    console.print(
        f"{what} in {plan.capacity / GIB:g} GiB.[/] What would help, the cheapest first, and what each needs:",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("set", no_wrap=True)
    table.add_column("cost", style="dim", overflow="fold")
    table.add_column("engine", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for remedy in plan.remedies:
        verdict = Text("fits", style="green") if remedy.fits else Text("too much", style="red")
        verdict = Text("tight", style="yellow") if remedy.tight else verdict
        engine = remedy.engine if "GPUs" in remedy.change else engine_label(remedy.engine, plan.devices)
        table.add_row(remedy.change, remedy.cost, engine, _amount(remedy.peak), verdict)
    console.print(table)


def _fewer(steps: int, plan: MemoryPlan, chosen: EnginePlan) -> str:
    """What fewer micro-batches save under engines that move weights and gradients for each of them."""
    if ENGINES[chosen.engine].shards == 0 or steps >= plan.training.accumulation:
        return ""
    return ": weights and gradients move between the GPUs once a micro-batch"


def _steps(count: int) -> str:
    return f"{count} accumulation step{'s' * (count > 1)}"
