"""The subcommands of `mce-llm`, one module each and what they share; `mce_llm.cli` parses their command lines."""
