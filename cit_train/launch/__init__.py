"""Runs as jobs of a SLURM cluster, through submitit, and the state of those runs."""
