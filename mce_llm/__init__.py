"""Fine-tune language models with matrix cross-entropy beside cross-entropy.

`mce_llm.matrix` has the mathematics, `mce_llm.lm` the losses of language models and the trainer around them,
`mce_llm.data` sources, prompts and tokenisation, `mce_llm.finetuning` what the recipe is made of, `mce_llm.eval` answers,
accuracy and comparisons, `mce_llm.vision` losses and pretraining of image encoders, `mce_llm.planning` memory before a
run, and `mce_llm.running` what every program does around its own work. None of them is imported until it is asked for.
"""

from mce_llm.errors import MceLlmError

__version__ = "0.1.0"

__all__ = ["MceLlmError", "__version__"]
