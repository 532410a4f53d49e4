"""The whole thing on real packaged data, on a CPU."""
