"""kvwire-bench serve and run: a measurement between two hosts."""
