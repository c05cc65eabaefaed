"""Internal: `lane_send`, called by the engine without the GIL; nothing for Python."""
