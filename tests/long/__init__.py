"""The long runs: counts too large for the test suite, as ``python -m tests.long`` (``.ci/long``)."""
