"""``python -m attncli`` is the same program as ``attncli``."""

import sys

from attncli.cli import main

if __name__ == "__main__":
    sys.exit(main())
