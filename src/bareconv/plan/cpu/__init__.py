"""A training step planned as a whole for a CPU: fused, specialised to its shapes, laid out in memory once.

    plan = CpuPlan(model, optimizer, batch_size=64)
    loss, correct = plan.step(images, labels, order, lr)
    logits = plan.predict(images)
    print(plan.explain())

``CpuPlan`` is in ``plan.cpu.plan``.
"""
