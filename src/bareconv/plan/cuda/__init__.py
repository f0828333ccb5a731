"""The plan of a training step on a GPU.

    plan = CudaPlan(model, optimizer, batch_size=256, precision="bfloat16")
    losses, hits = plan.steps(pixels, labels, order, rates)

step, fused     the launches of a step, as the graph's nodes write them down
lowering        all of them in order
record          a launch, a buffer; where buffers lie
parameters      weights, optimizer state, the copies that kernels read
runtime         a GPU, or what stands in for one in tests
binding         launches with addresses, graphs
plan            what is left for the training loop to see
"""
