"""kvwire-bench models: what the KV cache of a model consists of."""
