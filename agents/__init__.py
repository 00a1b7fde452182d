"""Train, evaluate and export controllers with Stable-Baselines3."""
