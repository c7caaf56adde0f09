"""Sub-benchmarks of `scripts/bench`: each measures ours and its peers in turn, on this machine, in one run."""
