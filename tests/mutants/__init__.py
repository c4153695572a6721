"""Mutation testing, by hand: what the tests do not notice when one line of the program changes.

python -m tests.mutants --module attncli/attention --mutants 40 --seed 1
"""
