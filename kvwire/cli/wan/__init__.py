"""kvwire-bench wan: what kvwire makes of a long, lossy, shared link, which is emulated on this host."""
