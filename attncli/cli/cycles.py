"""The cycle collector, held back while the program loads, works and ends.

What is loaded stays, the work makes hardly any cycles, and what is left at the end goes with the
process: by default it would all be looked at a dozen times, a sixth of the time of a small call.
"""

from __future__ import annotations

import atexit
import gc

RARELY = 70_000  # new objects between two searches, a hundred times the default

gc.set_threshold(RARELY, *gc.get_threshold()[1:])
atexit.register(gc.freeze)
