"""kvwire-bench loopback: a measurement between two processes of one host."""
