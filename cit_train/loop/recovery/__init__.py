"""What a run goes on from: saved, checked, and mended where it is damaged."""
