"""What the subcommands of `mce-llm` do that look at a recipe before it runs; `mce_llm.cli` is their thin face."""
