"""Speed, held against other libraries: ``python -m tests.benchmarks``. Not part of the tests."""
