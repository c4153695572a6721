"""Bad input by the million: what is wrong is said, and nothing else ever happens.

``python -m tests.fuzz --seconds 600`` runs all targets for so long, ``test_fuzz.py`` a little of
each. A target takes a random generator, makes one input of it and returns; what it raises is a
fault, and its seed gives the same input again: ``--target file --seed 123 --inputs 1``.
"""
