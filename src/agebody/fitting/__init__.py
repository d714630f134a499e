"""From observations to bodies: solvers, and what they solve."""
