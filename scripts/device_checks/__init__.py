"""The parts of `scripts/device_check.py`: a supervisor of processes, and the sections that they run."""
