"""Accuracy on MATH (Hendrycks et al., 2021) and on data like it.

    accelerate launch eval/hendrycks_math.py --model MODEL --output DIR

--help lists every option; `--config FILE.yaml` reads them from a file, and the command line overrides it.
"""

import sys

from mce_llm.eval.math import main

if __name__ == "__main__":
    sys.exit(main())
