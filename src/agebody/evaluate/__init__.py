"""From files of predictions and truths to the tables of the benchmarks."""
