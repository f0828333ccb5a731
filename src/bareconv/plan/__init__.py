"""A training step planned as a whole: fused, specialised to its shapes, laid out in memory once.

    plan = CpuPlan(model, optimizer, batch_size=64)
    loss, correct = plan.step(images, labels, order, lr)
    logits = plan.predict(images)
    print(plan.explain())
"""

from bareconv.plan.cpu import CpuPlan
from bareconv.plan.explain import Explanation, Row
from bareconv.plan.graph import Graph, Node, Tensor, graph_of

__all__ = ["CpuPlan", "Explanation", "Graph", "Node", "Row", "Tensor", "graph_of"]
