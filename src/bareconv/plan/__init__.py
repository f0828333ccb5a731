"""A training step planned as a whole.

graph        a model as fused operations, whatever the device
parameters   all of a model's in one array
placing      where buffers lie, so that those of different times share bytes
explain      what a plan has chosen: a row for every call
cpu          the plan on a CPU: machine code for the model's shapes, memory laid out once
cuda         the plan on a GPU: kernels for the model's shapes, captured as one graph
tuned        without a compiler: the same groups of layers by tuned NumPy kernels
"""
