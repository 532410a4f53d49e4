"""Sources that are text: lines in an encoding, as tables or as JSON."""
