"""Internal: `lane_receive`, called by the engine without the GIL; nothing for Python."""
