"""LoRA, DoRA and rsLoRA adapters on a recipe's model, through `peft`; layers trained whole beside them.

The losses read the output head's weight, so an adapter on the head is refused, and so is one on embeddings that the
head shares; both are said before any data is read. Merging adapters into the weights is in `merging`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mce_llm.finetuning.models import unquantized_layers, without_weights
from mce_llm.finetuning.quantization import quantized_loading
from mce_llm.finetuning.settings import ModelArguments, ModelSourceError
from mce_llm.lm.heads import UnsupportedModelError, output_layer
from mce_llm.running.hub import commit_of
from mce_llm.running.messages import cause, counted, nearest_hint, raise_all
from mce_llm.running.model_classes import text_prefix
from mce_llm.running.settings import names_of
from mce_llm.running.vocabulary import embedding_rows

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel  # heavy, and needed for adapters alone


def check_adapters(
    settings: ModelArguments, tokenizer: PreTrainedTokenizerBase, *, embeddings: str = "output"
) -> None:
    """Put the adapters on a model without weights, to find out in seconds what is wrong with them.

    Args:
        settings: Those of the model.
        tokenizer: Its tokenizer.
        embeddings: Which table gives the matrix loss its geometry, see `MatrixLossConfig`.

    Raises:
        ModelSourceError: The settings do not fit the model or this machine. A model whose code comes with its
            checkpoint is judged by `with_lora` alone.
    """
    if settings.lora_r == 0:
        return
    quantized_loading(settings, unquantized_layers(settings, tokenizer))
    if (model := without_weights(settings, tokenizer)) is None:
        if settings.resize_embeddings:
            raise ModelSourceError(
                "resize_embeddings with lora_r needs a model of transformers: of one whose code comes with its checkpoint, "
                "the layers are not known in time; leave resize_embeddings or lora_r out"
            )
        return
    _check_new_rows(model, settings, tokenizer)
    with torch.device("meta"):  # draws no random numbers: training starts where it would without this check
        adapted: Any = with_lora(model, settings)
    if embeddings == "input" and has_adapters(adapted.get_base_model().get_input_embeddings()):
        raise ModelSourceError(
            f"{_targets(settings)} puts an adapter on the input embeddings, whose weight matrix_embeddings: input reads "
            "without the adapter's part; take them out, or use matrix_embeddings: output"
        )


def _check_new_rows(
    model: PreTrainedModel, settings: ModelArguments, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse embeddings that were given rows and are then frozen: the rows would stay what they were drawn as."""
    if not settings.resize_embeddings:
        return
    before = without_weights(replace(settings, resize_embeddings=False), tokenizer)
    if before is None or embedding_rows(before) == embedding_rows(model):
        return
    saved = {module for name in names_of(settings.lora_modules_to_save) for module in _named(model, name)}
    needed = _ends(model)
    if needed <= saved or (tied_embeddings(model) and needed & saved):
        return
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if module in needed]
    wanted = ", ".join(names[:1] if tied_embeddings(model) else names)
    added = counted(embedding_rows(model) - embedding_rows(before), "row")
    raise ModelSourceError(
        f"resize_embeddings gives the model {added}, which lora_r would leave "
        f"frozen as they were drawn; train embeddings and head whole: lora_modules_to_save: [{wanted}]"
    )


def with_lora(model: PreTrainedModel, settings: ModelArguments) -> PeftModel:
    """The model with trainable adapters on frozen weights, and with copies of the layers that are trained whole.

    What is trained is float32 whatever the dtype of the frozen weights, since bfloat16 loses small updates. Tied
    embeddings stay tied: where one of them is trained whole, both are, as one weight.

    Args:
        model: It is changed in place.
        settings: Rank, scale, layers and variant.

    Raises:
        ModelSourceError: Layers that do not exist or cannot have an adapter, an adapter on the output head, or on
            embeddings that are tied to it.
    """
    from peft import get_peft_model

    tied = tied_embeddings(model)
    config = _lora_config(model, settings, tied)
    # peft's prepare_model_for_kbit_training is left out: it makes every unquantised weight float32, gigabytes at a large
    # vocabulary, where only what is trained needs that.
    try:
        adapted = get_peft_model(model, config, revision=_revision_of_base(settings))
    except ValueError as error:
        raise ModelSourceError(f"{_targets(settings)}: {cause(error)}") from error
    inner = cast(PreTrainedModel, adapted.get_base_model())
    _check_ends(inner, settings, tied)
    _train_copies_in_float32(inner)
    return adapted


def _revision_of_base(settings: ModelArguments) -> str | None:
    """What the adapter names beside its base model: the commit, since a branch moves on."""
    name, revision = settings.model_name_or_path, settings.model_revision
    if name is None or revision is None:
        return None
    return commit_of(name, revision) or revision


def tied_embeddings(model: PreTrainedModel) -> bool:
    """Are the input embeddings and the output head one weight?"""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def has_adapters(module: nn.Module | None) -> bool:
    """Is the layer, or one inside it, wrapped by an adapter?"""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return module is not None and any(isinstance(part, BaseTunerLayer) for part in module.modules())


def _lora_config(model: PreTrainedModel, settings: ModelArguments, tied: bool) -> LoraConfig:
    from peft import LoraConfig, TaskType

    saved = names_of(settings.lora_modules_to_save)
    _check_saved(model, saved)
    extra: dict[str, Any] = {}
    if tied and any(_named(model, name) & _ends(model) for name in saved):
        if "ensure_weight_tying" not in LoraConfig.__dataclass_fields__:
            raise ModelSourceError(
                f"lora_modules_to_save {settings.lora_modules_to_save!r} on tied embeddings needs peft 0.18 or later"
            )
        extra["ensure_weight_tying"] = True
    if excluded := _excluded(model, settings):
        extra["exclude_modules"] = excluded
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=_target_modules(settings.lora_target_modules),
        modules_to_save=saved or None,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        **extra,
    )


def _excluded(model: PreTrainedModel, settings: ModelArguments) -> str | None:
    """A regular expression for the layers that get no adapter, whatever `lora_target_modules` says; None for none."""
    patterns = []
    if (prefix := text_prefix(model)) is not None:
        patterns.append(rf"(?!{re.escape(prefix)}\.).*")  # text gives the others no gradient
    if settings.lora_target_modules == "all-linear":
        # Routers that are linear layers, and return more than a product: an adapter would take that for its input's.
        routers = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and type(module).__module__.startswith("transformers.models.")
        ]
        patterns += [re.escape(name) for name in routers]
    return "|".join(patterns) or None


def _target_modules(text: str) -> str | list[str]:
    """`all-linear` and regular expressions as they are, names as a list: peft tells them apart by their type."""
    if text == "all-linear" or re.search(r"[*+?|()\[\]{}^$\\]", text):
        return text
    return names_of(text)


def _check_saved(model: PreTrainedModel, saved: list[str]) -> None:
    """Refuse names that peft would pass over in silence, and quantised layers, which cannot be trained."""
    problems = []
    for name in saved:
        modules = _named(model, name)
        if not modules:
            last = {key.rpartition(".")[2] for key, _ in model.named_modules() if key}
            problems.append(f"the model has no layer {name!r}{nearest_hint(name, last)}")
        weights = [weight for module in modules for weight in module.parameters()]
        if modules and not weights:
            problems.append(f"{name!r} has no weights")
        elif not all(weight.is_floating_point() for weight in weights):
            problems.append(f"{name!r} is quantised and cannot be trained whole")
    raise_all([f"lora_modules_to_save: {problem}" for problem in problems], ModelSourceError)


def _check_ends(base: PreTrainedModel, settings: ModelArguments, tied: bool) -> None:
    """Refuse adapters where the loss, or a merged model, would miss their part."""
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    names = {id(module): name for name, module in base.named_modules()}
    if has_adapters(head):
        name = names[id(head)]
        raise ModelSourceError(
            f"{_targets(settings)} puts an adapter on the output head {name}: the loss reads the head's weight, which "
            f"lacks the adapter's part; take {name} out (all-linear leaves it out), or train it whole with "
            f"lora_modules_to_save: {name}"
        )
    if tied and has_adapters(embeddings):
        name = names[id(embeddings)]
        raise ModelSourceError(
            f"{_targets(settings)} puts an adapter on {name}, whose weight is the output head's too; an adapter would "
            f"change the one and not the other; take {name} out, or train both whole with lora_modules_to_save: "
            f"{name.rpartition('.')[2]}"
        )
    try:
        output_layer(base)
    except UnsupportedModelError as error:
        raise ModelSourceError(str(error)) from error


def _train_copies_in_float32(base: PreTrainedModel) -> None:
    """Make trained copies float32, with the frozen layers around them left in their own dtype."""
    from peft.utils import ModulesToSaveWrapper

    head = base.get_output_embeddings()
    for wrapper in [module for module in base.modules() if isinstance(module, ModulesToSaveWrapper)]:
        frozen = [weight for weight in wrapper.original_module.parameters() if weight.dtype != torch.float32]
        if not frozen or hasattr(frozen[0], "ds_id"):
            continue  # the shards of ZeRO-3 have a float32 original in the optimizer
        for copy in wrapper.modules_to_save.values():
            copy.to(torch.float32)  # in place, so that copies that share a weight still do
            copy.register_forward_pre_hook(_inputs_to_float32, with_kwargs=True)
            if wrapper is not head:  # nothing frozen comes after the head
                copy.register_forward_hook(_OutputsTo(frozen[0].dtype))


def _inputs_to_float32(_: nn.Module, inputs: Any, named: Any) -> Any:
    return _cast((inputs, named), torch.float32)


class _OutputsTo:
    """A forward hook that casts what a layer returns."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(self, _: nn.Module, __: Any, output: Any) -> Any:
        return _cast(output, self._dtype)


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    """The floating-point tensors in nested tuples and mappings, in another dtype."""
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, tree)


def _named(model: nn.Module, name: str) -> set[nn.Module]:
    """The layers that `peft` takes a name of `modules_to_save` to mean."""
    return {
        module for key, module in model.named_modules(remove_duplicate=False) if key and key.endswith(name)
    }


def _ends(model: PreTrainedModel) -> set[nn.Module]:
    return {model.get_input_embeddings(), model.get_output_embeddings()}


def _targets(settings: ModelArguments) -> str:
    return f"lora_target_modules {settings.lora_target_modules!r}"
