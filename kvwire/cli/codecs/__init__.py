"""kvwire-bench codecs: which codec is worth it, for what data, on which links."""
