"""Internal: what workers ask of a lane's socket, called without the GIL; nothing for Python."""
