"""Do many jobs with one body: in this process, or on workers of Ray, of which some may be lost meanwhile."""
