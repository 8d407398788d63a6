"""Prints the folder of the tasks: `python -m mce_llm.eval.lm_eval_tasks`."""

from mce_llm.eval.lm_eval_tasks import task_folder

if __name__ == "__main__":
    print(task_folder())
