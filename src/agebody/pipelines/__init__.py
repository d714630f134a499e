"""Applications: labels, releases, evaluation, benchmarks, the demo and the command line."""
