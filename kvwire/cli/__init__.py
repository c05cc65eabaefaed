"""Command-line tools; they use the public API like everyone else."""
