"""What a run takes of a GPU's memory, told before it starts: `vrft plan` and `memory=auto`.

What lives through the whole run (weights, gradients, optimizer, reference) follows from counts of parameters: `parts`.
What comes and goes with a step (activations, logits, caches) comes from a dry run of the true code on torch's meta
device, where tensors have shapes and no memory: `dry_run`. `fit` looks for the cheapest changes that make it fit.
"""
