"""Speed, as ratios against named baselines of the same run. Scripts, not tests: the machines are shared and noisy."""
