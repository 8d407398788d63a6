"""Accuracy on GSM8K and on data like it: `accelerate launch eval/gsm8k.py --model MODEL --output DIR`.

--help lists every option; `--config FILE.yaml` reads them from a file, and the command line overrides it.
"""

import sys

from mce_llm.eval.gsm8k import main

if __name__ == "__main__":
    sys.exit(main())
