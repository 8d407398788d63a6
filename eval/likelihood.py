"""How probable a model finds the reference solutions of GSM8K and of data like it, and the numbers in them.

    accelerate launch eval/likelihood.py --model MODEL --output DIR

--help lists every option; `--config FILE.yaml` reads them from a file, and the command line overrides it.
"""

import sys

from mce_llm.eval.likelihood.evaluation import main

if __name__ == "__main__":
    sys.exit(main())
