"""Steps of fixed shape over tensors that stay where they are: captured once as CUDA graphs, replayed for every call.

What changes from step to step is data on the device. Without a GPU the same static steps run eagerly, which is how they
are tested against the ordinary loop. The plain loop knows nothing of this: a target, a proposer and an engine are
wrapped from outside.
"""
