"""Workload managers: Slurm first. Thin: it calls the runtime's programs and decides nothing."""
