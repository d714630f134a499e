"""Run many jobs with one body, in this process or on Ray workers, and tolerate lost workers."""
