"""The checks, in the order of their worth: the time may be over before the last of them."""

from scripts.gpu_check.setting import Check

CHECKS = (
    Check("environment", "benches.environment", 5, 60),
    Check("tests marked gpu", "benches.gpu_tests", 45, 150),
    Check("index", "numerics.index_against_exact", 10, 60),
    Check("text vectors", "numerics.text_vectors", 15, 60),
    Check("vision features", "numerics.vision_features", 10, 60),
    Check("curation", "numerics.curation", 20, 60),
    Check("same run twice", "runs.same_run_twice", 30, 120),
    Check("kill and resume", "runs.killed_and_resumed", 30, 120),
    Check("two ranks", "runs.two_ranks", 20, 90),
    Check("training and the CPU", "runs.against_cpu", 25, 90),
    Check("curation ahead", "runs.curated_ahead", 15, 90),
    Check("bench text encoder", "benches.text_encoder", 15, 60),
    Check("bench curation", "benches.curation", 20, 90),
    Check("bench train step", "benches.train_step", 25, 90),
)
