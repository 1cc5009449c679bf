"""Training: phases, optimisers, checkpoints, hooks, processes."""
