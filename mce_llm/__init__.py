"""Fine-tune language models with matrix cross-entropy beside cross-entropy.

The rooms: `mce_llm.matrix` (the mathematics, torch alone), `mce_llm.lm` (losses and trainer),
`mce_llm.data` (sources, prompts, tokenisation), `mce_llm.eval` (answers and accuracy) and
`mce_llm.recipes` (fine-tuning scripts). Nothing is imported until it is asked for.
"""

__version__ = "0.1.0"
