"""Internal: `claim` and `settle`, called by `send` without the GIL; nothing for Python."""
