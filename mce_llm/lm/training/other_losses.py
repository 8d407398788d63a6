"""Settings that would put another loss in the place of this package's, or split its input: trainer and plan refuse them."""

from __future__ import annotations

from typing import Any

from mce_llm.running.launched_precision import launched_precision
from mce_llm.running.processes import other_parallelism


def other_losses(args: Any, compute_loss_func: Any = None, gpus: int = 1) -> list[str]:
    """What is wrong with settings that would silently bypass the patched forward, or give it a part of each sequence.

    Args:
        args: The training arguments.
        compute_loss_func: That of the trainer.
        gpus: GPUs of this process.

    Returns:
        One text a setting, with what to do.
    """
    problems = []
    if args.label_smoothing_factor:
        problems.append(
            "label_smoothing_factor replaces the model's loss; set it to 0, and in its place loss to label_smoothing and "
            f"smoothing to {args.label_smoothing_factor}"
        )
    if compute_loss_func is not None:
        problems.append("compute_loss_func replaces the model's loss; leave it out")
    if getattr(args, "use_liger_kernel", False):
        problems.append("use_liger_kernel replaces the forward that computes the loss; set it to false")
    if gpus > 1:
        problems.append(
            f"{gpus} GPUs in one process mean torch.nn.DataParallel; start one process a GPU: "
            f"accelerate launch --num_processes {gpus} …, or set CUDA_VISIBLE_DEVICES to one"
        )
    if (getattr(args, "mixed_precision", None) or launched_precision()) == "fp8":
        problems.append(
            "mixed_precision fp8 at the launch puts layers of another library in the model's place, which the losses have not "
            "been tested with; launch with --mixed_precision no, and set bf16: true"
        )
    problems += other_parallelism(getattr(args, "parallelism_config", None), tensor_parallel=True)
    return problems
