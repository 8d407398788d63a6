"""Where a training step reads a value, and so would wait for a GPU: once in our code, before the optimizer."""

import collections
import traceback
from pathlib import Path

import transformers
from torch.utils._python_dispatch import TorchDispatchMode

import mce_llm
from helpers.monitored import trainer_for

OURS = Path(mce_llm.__file__).parent


class Reads(TorchDispatchMode):
    """Counts, by module of this package, the operations that need a value on the host, or bring one to the device.

    Not seen: `tolist` of a tensor on the CPU, which is no operation of torch's dispatcher.
    """

    def __init__(self):
        super().__init__()
        self.seen = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name in ("_local_scalar_dense", "nonzero", "equal", "lift_fresh"):
            frames = [frame.filename for frame in traceback.extract_stack()]
            last = next((f for f in reversed(frames) if "/torch/" not in f and f != __file__), "")
            if OURS in Path(last).parents:
                self.seen[Path(last).stem] += 1
        return func(*args, **(kwargs or {}))


class Step(transformers.TrainerCallback):
    """Keeps what was read in the third step alone."""

    def __init__(self, reads):
        self._reads, self.seen = reads, None

    def on_step_begin(self, args, state, control, **kwargs):
        self._reads.seen.clear()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.seen = dict(self._reads.seen)


def test_one_read_a_step_that_does_not_log(tmp_path):
    reads = Reads()
    step = Step(reads)
    settings = {"max_grad_norm": 1.0, "gradient_accumulation_steps": 2, "logging_steps": 4}
    trainer = trainer_for(tmp_path, rows=32, monitor_steps=4, **settings)
    trainer.add_callback(step)
    with reads:
        trainer.train()
    assert step.seen == {"guard": 1}
    assert reads.seen["head_sample"], "the fourth step measures spectra, and that would be seen"
