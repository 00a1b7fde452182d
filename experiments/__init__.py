"""Compare learned and hand-tuned learning rates on paired seeds."""
