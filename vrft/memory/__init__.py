"""How much GPU memory a run takes, known before it starts: `vrft plan` and `memory=auto`.

Weights, gradients, optimizer state and the reference model live through the whole run; their sizes follow from the
number of parameters (`parts`). Activations, logits and caches live within a step; their sizes come from a dry run of
the true code on torch's meta device, where tensors have shapes but no memory (`dry_run`). `plan` adds up
the peak of each phase, `changes` searches for the cheapest changes that make a run fit, and `table` prints both.
"""
