"""What every vision script does around its own work: the run's folder and journal, checkpoints, progress."""

from mce_llm.running.folder import CheckpointError, OutputError
from mce_llm.running.launching import run_script
from mce_llm.vision.running.checkpoint import load_checkpoint, save_checkpoint
from mce_llm.vision.running.folder import RunFolder, RunSettings, open_run
from mce_llm.vision.running.launching import images_per_process, leave_if_asked, stop_agreed
from mce_llm.vision.running.progress import progress_bar
from mce_llm.vision.running.resuming import Input, ResumeRules, input_of_file, input_of_images

__all__ = [
    "CheckpointError",
    "Input",
    "OutputError",
    "ResumeRules",
    "RunFolder",
    "RunSettings",
    "images_per_process",
    "input_of_file",
    "input_of_images",
    "leave_if_asked",
    "load_checkpoint",
    "open_run",
    "progress_bar",
    "run_script",
    "save_checkpoint",
    "stop_agreed",
]
