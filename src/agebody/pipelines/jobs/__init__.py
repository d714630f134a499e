"""Run many jobs with one body, in this process or on Ray workers, some of which may be lost."""
