"""Models judged on past cutoffs, beside baselines."""
