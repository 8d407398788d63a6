"""What every script of this room does around its own work: output folder, checkpoints, journal, progress, exit codes."""

from mce_llm.vision.running.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from mce_llm.vision.running.folder import OutputError, RunFolder, RunSettings, open_run
from mce_llm.vision.running.launching import leave_if_asked, run_script, stop_agreed
from mce_llm.vision.running.progress import progress_bar

__all__ = [
    "CheckpointError",
    "OutputError",
    "RunFolder",
    "RunSettings",
    "leave_if_asked",
    "load_checkpoint",
    "open_run",
    "progress_bar",
    "run_script",
    "save_checkpoint",
    "stop_agreed",
]
