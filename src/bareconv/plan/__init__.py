"""A training step planned as a whole.

graph     a model as fused operations, whatever the device
explain   what a plan has chosen: a row for every call
cpu       the plan on a CPU: machine code for the model's shapes, memory laid out once
tuned     without a compiler: the same groups of layers by tuned NumPy kernels
"""
