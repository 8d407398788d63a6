"""Sample generations in a real run: what is written where, which prompts, and that training does not notice."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.monitored import Rows, lines, logged, trained, trainer_for
from mce_llm.lm.training.monitoring import SamplesCallback
from mce_llm.lm.training.monitoring.samples import read_prompts

PROMPTS = ["Tom has 3 apples.", "A box holds 7 pens and"]


def sampled(folder, tokenizer, model, **changes):
    settings = {"sample_steps": 2, "sample_prompts": PROMPTS, "sample_max_new_tokens": 5, **changes}
    return trained(folder, model=model, tokenizer=tokenizer, **settings)


def test_the_run_ends_with_the_same_weights(tmp_path, tokenizer, talker):
    """Dropout is on, so a single random number that is drawn would show."""
    watched = sampled(tmp_path / "a", tokenizer, talker())
    alone = trained(tmp_path / "b", model=talker(), tokenizer=tokenizer)
    assert logged(watched, "loss") == logged(alone, "loss")
    for a, b in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not (tmp_path / "b" / "samples.jsonl").exists()


def test_what_is_written(tmp_path, tokenizer, talker):
    trainer = sampled(tmp_path, tokenizer, talker(), report_to="tensorboard")
    written = lines(tmp_path / "samples.jsonl")
    assert [(line["step"], line["prompt"]) for line in written] == [(s, p) for s in (2, 4) for p in PROMPTS]
    assert all(1 <= line["tokens"] <= 5 and line["finished"] in ("eos", "length") for line in written)

    # The last ones are what the trained model says now, one prompt at a time and without padding.
    model = trainer.model.eval()
    for line in written[2:]:
        ids = torch.tensor([tokenizer(line["prompt"])["input_ids"]])
        for _ in range(line["tokens"]):
            with torch.no_grad():
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        said = tokenizer.decode(ids[0, -line["tokens"] :], skip_special_tokens=True)
        assert line["completion"] == said

    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    texts = events.Tensors("samples/0/text_summary")
    assert [text.step for text in texts] == [2, 4]
    assert PROMPTS[0] in texts[0].tensor_proto.string_val[0].decode()


def test_modes_and_generation_settings_are_put_back(tmp_path, tokenizer, talker):
    trainer = trainer_for(
        tmp_path, model=talker(), tokenizer=tokenizer, sample_steps=1, sample_prompts=PROMPTS
    )
    model = trainer.model.train()
    model.model.layers[1].eval()
    model.generation_config.temperature = 0.3
    modes = {name: module.training for name, module in model.named_modules()}
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, SamplesCallback)]
    callback._generate()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.generation_config.temperature == 0.3


def test_a_resumed_run_leaves_the_file_of_an_undisturbed_one(tmp_path, tokenizer, talker):
    changes = {"save_strategy": "steps", "save_steps": 2}
    sampled(tmp_path, tokenizer, talker(), **changes)
    whole = lines(tmp_path / "samples.jsonl")
    sampled(tmp_path, tokenizer, talker(), **changes, resume=str(tmp_path / "checkpoint-2"))
    assert lines(tmp_path / "samples.jsonl") == whole


def test_prompts_of_the_evaluation_data(tmp_path, tokenizer, talker):
    sampled(tmp_path, tokenizer, talker(), sample_prompts=None)
    rows = Rows(7, seed=9)
    expected = []
    for row in (rows[i] for i in range(7)):
        first = int((row["labels"] != -100).nonzero()[0])
        expected.append(tokenizer.decode(row["input_ids"][:first], skip_special_tokens=True))
    assert [line["prompt"] for line in lines(tmp_path / "samples.jsonl")][:4] == expected[:4]


@pytest.mark.parametrize("form", ["txt", "json"])
def test_prompts_of_a_file(tmp_path, form):
    path = tmp_path / f"prompts.{form}"
    path.write_text("\n".join(PROMPTS) if form == "txt" else json.dumps(PROMPTS))
    assert read_prompts([str(path)]) == PROMPTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read sample_prompts from"),
        ("{", "cannot read sample_prompts from"),
        ('{"a": 1}', "must hold a JSON list of texts"),
        ("[1]", "must hold a JSON list of texts"),
        ("[]", "must be texts that are not empty"),
        ('["a", " "]', "must be texts that are not empty"),
    ],
)
def test_unusable_prompt_files(tmp_path, content, message):
    path = tmp_path / "prompts.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts([str(path)])


def test_what_does_not_fit_is_said_when_the_trainer_is_made(tmp_path, tokenizer, talker):
    with pytest.raises(ValueError, match="sample_steps needs a tokenizer"):
        trainer_for(tmp_path, model=talker(), sample_steps=2)
    with pytest.raises(
        ValueError, match=r"longest of sample_prompts has \d+ tokens, the model has 8 positions"
    ):
        sampled(tmp_path, tokenizer, talker(max_position_embeddings=8), sample_prompts=["apples " * 30])
    trainer = trainer_for(tmp_path, model=talker(), tokenizer=tokenizer)
    trainer.eval_dataset = trainer.train_dataset = None
    with pytest.raises(ValueError, match=r"found no prompts in the data .* give sample_prompts"):
        SamplesCallback(trainer, sample_steps=1)


def test_completions_end_where_the_positions_do(tmp_path, tokenizer, talker):
    model = talker(max_position_embeddings=16)
    sampled(tmp_path, tokenizer, model, sample_prompts=["apples"], sample_max_new_tokens=400)
    length = len(tokenizer("apples")["input_ids"])
    assert max(line["tokens"] for line in lines(tmp_path / "samples.jsonl")) <= 16 - length
