"""Internal: functions other extension modules call without the GIL; nothing for Python."""
