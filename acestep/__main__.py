"""`python -m acestep`: the same command line as the console script."""

import sys

from acestep.acestep_v15_pipeline import main

if __name__ == "__main__":
    sys.exit(main())
