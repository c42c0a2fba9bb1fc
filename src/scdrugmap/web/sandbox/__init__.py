"""The first look at a file from a stranger, in a process that can do nothing else."""
