"""kvwire-bench doctor: facts of the host and the path, and the rules that judge them."""
