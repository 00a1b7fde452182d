"""Environments, populations and workloads in which controllers are trained."""
