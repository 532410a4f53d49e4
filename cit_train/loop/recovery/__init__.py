"""The saved state that a run resumes from: written, checked, and repaired where it is damaged."""
