"""kvwire-bench report: from JSON records to one HTML page."""
