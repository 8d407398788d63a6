"""8-bit weights under gradient checkpointing: what is kept, the gradients, and what the trainer settles."""

import pytest
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model

from helpers.memory import LiveBytes
from helpers.models import make_model
from mce_llm.lm import MatrixLossConfig, MatrixTrainer, MatrixTrainingArguments, patch_model
from mce_llm.lm.training.checkpointing import checkpoint_eight_bit, checkpointing_kwargs, is_reentrant

WIDTH, INNER, ROWS, LENGTH = 128, 320, 2, 48


@pytest.fixture
def eight_bit(tmp_path):
    """A small Llama with frozen 8-bit weights and LoRA, of the given number of layers."""
    pytest.importorskip("bitsandbytes")

    def call(layers=2):
        torch.manual_seed(0)
        sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": 4}
        config = transformers.LlamaConfig(vocab_size=128, num_hidden_layers=layers, **sizes)
        transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
        base = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "model",
            dtype=torch.bfloat16,
            quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True),
            device_map={"": "cpu"},
        )
        lora = LoraConfig(
            task_type=TaskType.CAUSAL_LM, r=4, target_modules="all-linear", init_lora_weights=False
        )
        torch.manual_seed(1)
        return get_peft_model(base, lora).train()

    return call


def step(model, kwargs):
    """(bytes that a step's graph holds after the forward pass, gradients)."""
    patch_model(model, MatrixLossConfig(weight=0.0))
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    if kwargs is not None:
        enable(kwargs)
    ids = torch.arange(3, 3 + LENGTH).repeat(ROWS, 1)
    with LiveBytes() as memory, torch.autocast("cpu", torch.bfloat16):
        memory.exclude(ids, *model.parameters(), *model.buffers())
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        held = memory.live
    loss.backward()
    return held, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_reentrant_checkpointing_keeps_the_input_of_a_layer_alone(eight_bit):
    """Of one more layer, bytes a token: its input in bfloat16; not reentrant, those of its 8-bit products too."""
    held = {}
    for reentrant in (True, False):
        two, three = (step(eight_bit(layers), {"use_reentrant": reentrant})[0] for layers in (2, 3))
        held[reentrant] = (three - two) / (ROWS * LENGTH)
    # The state of the random numbers and of the quantised weights comes on top, whatever the number of tokens.
    assert 2 * WIDTH <= held[True] < 2 * WIDTH + 220
    assert held[False] - held[True] == pytest.approx(2 * (3 * WIDTH + INNER), rel=0.01)


def test_gradients_are_the_same(eight_bit):
    """Bitwise: the same operations on the same numbers, with and without recomputation."""
    plain, *others = (
        step(eight_bit(), kw)[1] for kw in (None, {"use_reentrant": False}, {"use_reentrant": True})
    )
    assert plain
    for gradients in others:
        assert all(torch.equal(gradients[name], plain[name]) for name in plain)
        assert all(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        (None, True, "8-bit weights: gradient checkpointing is reentrant"),
        ({"use_reentrant": False}, False, "8-bit weights with use_reentrant: false: every layer keeps"),
        ({"use_reentrant": True}, True, None),
    ],
)
def test_the_trainer_settles_it_and_says_so(given, expected, said, eight_bit, tmp_path, capsys):
    arguments = MatrixTrainingArguments(
        str(tmp_path / "run"),
        activation_checkpointing=True,
        activation_checkpointing_kwargs=given,
        max_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        monitor_steps=0,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    row = {"input_ids": torch.arange(3, 13), "labels": torch.arange(3, 13)}
    trainer = MatrixTrainer(model=eight_bit(), args=arguments, train_dataset=[row] * 8)
    trainer.train()
    assert is_reentrant(trainer.args, eight_bit=True) is expected
    assert trainer.args.gradient_checkpointing_kwargs == checkpointing_kwargs(trainer.args)
    used = trainer.model.get_base_model().model.layers[0]._gradient_checkpointing_func.keywords
    assert used["use_reentrant"] is expected
    output = capsys.readouterr().out
    assert ("8-bit weights" in output) == (said is not None)
    assert said is None or said in output


def test_other_weights_are_left_alone(tmp_path):
    args = MatrixTrainingArguments(
        str(tmp_path), activation_checkpointing=True, use_cpu=True, report_to="none"
    )
    assert checkpoint_eight_bit(args, make_model()) is None
    assert checkpointing_kwargs(args) == {}
    assert not is_reentrant(args, eight_bit=False)
