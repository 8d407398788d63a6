"""What each process of `run_engine` does: a few runs of `MatrixTrainer` on the asked-for engine, written to disk.

FSDP2 does not run through accelerate without an accelerator, so here the engine is put into its state by hand; what
then wraps the model, clips and steps is accelerate's and torch's own code, over gloo.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.utils.data import Dataset, SequentialSampler
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import mce_llm.lm.patch as patch
import mce_llm.lm.training.mixin as mixin
from helpers.models import VOCABULARY, make_model
from mce_llm import MceLlmError
from mce_llm.lm import MatrixTrainer, MatrixTrainingArguments
from mce_llm.lm.router_loss import router_coefficient
from mce_llm.running.processes import leave_processes

JOB = json.loads(Path(sys.argv[1]).read_text())
ENGINE, OUT = JOB["engine"], Path(JOB["out"])
LENGTH = 10


class Rows(Dataset):
    """Rows with 1 to 9 trained tokens each, so that ranks and micro-batches are unequal.

    `repeat`: only so many different ones, over and over; `blank`: rows of which no label is left but the first, which
    the shift takes away.
    """

    def __init__(self, count, repeat=None, blank=()):
        generator = torch.Generator().manual_seed(5)
        self._ids = torch.randint(3, VOCABULARY, (count, LENGTH), generator=generator)
        self._repeat, self._blank = repeat or count, blank

    def __len__(self):
        return len(self._ids)

    def __getitem__(self, index):
        if index in self._blank:
            labels = torch.full_like(self._ids[index], -100)
            labels[0] = self._ids[index][0]
            return {"input_ids": self._ids[index], "labels": labels}
        index %= self._repeat
        labels = self._ids[index].clone()
        labels[: LENGTH - 1 - (index * 5 + index // 3) % 9] = -100
        return {"input_ids": self._ids[index], "labels": labels}


def collate(rows):
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


class Trainer(MatrixTrainer):
    """Takes the rows in order, and has the faults that a test asks for."""

    def __init__(self, run, **named):
        super().__init__(**named)
        self._run, self._micro_steps, self.gradients = run, 0, []
        own_loss = self.matrix_patch._loss

        def loss_of(hidden, request):
            at = [self.state.global_step + 1, self.accelerator.process_index]
            at.append(self._micro_steps % self.args.gradient_accumulation_steps)
            self._micro_steps += 1
            if at not in run.get("where", ()):
                return own_loss(hidden, request)
            if run["fault"] == "loss":
                return own_loss(hidden, request) * torch.nan
            return own_loss(BadGradient.apply(hidden), request)

        self.matrix_patch._loss = loss_of

    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)

    def training_step(self, model, *args, **kwargs):
        loss = super().training_step(model, *args, **kwargs)
        if ENGINE == "fsdp2":
            self.gradients.append(gradient_elements(model))
        return loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self._run.get("fault") == "accumulation ignored":
            kwargs["num_items_in_batch"] = (inputs["labels"][:, 1:] != -100).sum()
        return super().compute_loss(model, inputs, *args, **kwargs)


class BadGradient(torch.autograd.Function):
    """The identity, with a gradient that is not a number."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


def gradient_elements(model):
    """Elements of the gradients that this process holds under FSDP2: [in shards, whole]."""
    shards = [p.grad.to_local() for p in model.parameters() if p.grad is not None]
    whole = []
    groups = {
        g for m in model.modules() for g in getattr(m, "_get_fsdp_state", FsdpState)()._fsdp_param_groups
    }
    for group in groups:  # norm and head share one
        for parameter in group.fsdp_params:
            unsharded = getattr(parameter, "_unsharded_param", None)
            whole += [getattr(unsharded, "grad", None), parameter.unsharded_accumulated_grad]
    return [sum(g.numel() for g in found if g is not None) for found in (shards, whole)]


class FsdpState:
    """That of a module which is no unit of FSDP2."""

    _fsdp_param_groups = ()


def arguments(run):
    settings = {
        "output_dir": str(OUT),
        "use_cpu": True,
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "matrix_order": 16,
        **run.get("arguments", {}),
    }
    if ENGINE.startswith("zero"):
        settings["deepspeed"] = {
            "train_micro_batch_size_per_gpu": settings["per_device_train_batch_size"],
            "gradient_accumulation_steps": settings.get("gradient_accumulation_steps", 1),
            "gradient_clipping": "auto",
            "zero_optimization": {
                "stage": int(ENGINE[-1]),
                "stage3_gather_16bit_weights_on_model_save": True,
            },
            "zero_allow_untested_optimizer": True,
            "torch_adam": True,
        }
    return MatrixTrainingArguments(**settings)


def use_fsdp2(trainer, state_dict_type, mixed_precision=None):
    """What accelerate does on GPUs when it is launched with fsdp2.yaml."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    shared = AcceleratorState._shared_state
    PartialState._shared_state["distributed_type"] = shared["distributed_type"] = DistributedType.FSDP
    shared["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(trainer.model._no_split_modules),
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
        state_dict_type=state_dict_type,
    )
    if mixed_precision is not None:
        shared["fsdp_plugin"].set_mixed_precision(mixed_precision)
    trainer.is_fsdp_enabled = True


def whole_weights(trainer):
    if ENGINE == "zero3":
        weights = trainer.model_wrapped._zero3_consolidated_16bit_state_dict() or {}
    else:
        weights = trainer.model.state_dict()
    return {
        name: (w.full_tensor() if hasattr(w, "full_tensor") else w).detach().clone()
        for name, w in weights.items()
    }


def train(run):
    """One run: (what was logged and seen, weights)."""
    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()
    unset_hf_deepspeed_config()  # of the run before: models are made in shards while ZeRO-3 is in force
    model = make_model(run.get("family", "llama"), initializer_range=0.2, scale=1.0)
    own_world_size = mixin._world_size
    if run.get("fault") == "statistics not shared":
        mixin._world_size = lambda: 1
    own_term, own_mask, own_exact = patch.router_term, mixin.without_repeated, mixin.exact_loss
    if run.get("fault") == "router not shared out":
        patch.router_term = lambda model, auxiliary, *_: router_coefficient(model) * auxiliary
    if run.get("fault") == "repeated rows counted":
        mixin.without_repeated = lambda inputs, _: inputs
    if run.get("fault") == "rounded by the engine":
        mixin.exact_loss = lambda *_: nullcontext()
    trainer = Trainer(
        run,
        model=model,
        args=arguments(run),
        train_dataset=Rows(96, **run.get("rows", {})),
        eval_dataset={name: Rows(**rows) for name, rows in run.get("evaluate", {}).items()} or None,
        data_collator=collate,
    )
    if run.get("fault") == "ranks apart":
        trainer.accelerator.reduce = lambda tensor, **_: tensor
    if ENGINE == "fsdp2":
        mixed = "bf16" if trainer.args.bf16 else None
        use_fsdp2(trainer, run.get("state_dict_type", "FULL_STATE_DICT"), mixed)
    log = {"error": ""}
    try:
        trainer.train(resume_from_checkpoint=run.get("resume"))
    except MceLlmError as error:
        log["error"] = f"{type(error).__name__}: {error}"
    mixin._world_size, patch.router_term, mixin.without_repeated = own_world_size, own_term, own_mask
    mixin.exact_loss = own_exact
    beside = ("mce_loss", "smoothing_loss", "emo_loss", "emo_distance", "aux_loss")
    for name in ("loss", "ce_loss", *beside, "grad_norm", "skipped_steps"):
        log[name] = [entry[name] for entry in trainer.state.log_history if name in entry]
    log["evaluations"] = {
        k: v for entry in trainer.state.log_history for k, v in entry.items() if "eval_" in k
    }
    log["gradients"] = trainer.gradients
    log["engine"] = trainer.accelerator.distributed_type.value
    log["processes"] = trainer.accelerator.num_processes
    log["sharded"] = sum(hasattr(p, "to_local") or hasattr(p, "ds_id") for p in trainer.model.parameters())
    return log, whole_weights(trainer)


def main():
    """Write log-NAME.json of every rank and weights-NAME.pt for every run of the job."""
    for name, run in JOB["runs"].items():
        log, weights = train(run)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        (OUT / f"log-{name}-{rank}.json").write_text(json.dumps(log))
        if rank == 0:
            torch.save(weights, OUT / f"weights-{name}.pt")
    leave_processes()


main()
