"""What is damaged in a run, and what can be made again: `cit verify` and `cit repair`."""
