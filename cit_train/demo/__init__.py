"""The demo: curation, training and evaluation on real packaged data, on a CPU."""
