"""Folders as trainings leave them: their log and their spectra, without a model."""

import json

import yaml


def write_training(folder, steps=(10, 20, 30), *, weight=0.3, start=0.5, spectra=True, recipe=None):
    """Write `trainer_state.json` and `spectra.jsonl` into a folder, which may be there.

    Args:
        folder: Where to.
        steps: Those at which everything was logged.
        weight: 0 for a training that does not log its MCE.
        start: The held-out CE at the first step.
        spectra: Whether there is a `spectra.jsonl`.
        recipe: The settings of its `recipe.yaml`; None for none.

    Returns:
        The folder.
    """
    history = []
    for place, step in enumerate(steps):
        training = {"step": step, "loss": start, "ce_loss": start / (1 + place), "learning_rate": 1e-3}
        if weight:
            training["mce_loss"] = 1 + 0.1 / (1 + place)
        spectrum = {"step": step, "hidden_effective_rank": 10.0 + place, "density_effective_rank": 2.0}
        held_out = {
            "step": step,
            "eval_ce_loss": start / (2 + place),
            "eval_mce_loss": 1 + 0.1 / (2 + place),
            "eval_hidden_effective_rank": 12.0 + place,
        }
        history += [training, spectrum, held_out]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": steps[-1]}))
    if spectra:
        (folder / "spectra.jsonl").write_text(
            "".join(json.dumps(spectrum_record(step)) + "\n" for step in steps)
        )
    if recipe is not None:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def spectrum_record(step):
    """One line of `spectra.jsonl`: every hidden eigenvalue, and three of the density's eight."""
    return {
        "step": step,
        "hidden": {
            "positions": 512,
            "effective_rank": 3.5,
            "width": 8,
            "eigenvalues": [4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.0, 0.0],
            "rest": 0.0,
        },
        "density": {
            "kind": "token",
            "positions": 512,
            "support": 3,
            "effective_rank": 1.8,
            "width": 8,
            "eigenvalues": [0.9, 0.04, 0.01],
            "rest": 0.01,
        },
    }
