"""Pools, relus, sums, masks, and what changes nothing."""

from __future__ import annotations

from bareconv import random
from bareconv.kernels.cuda import elementwise, pool
from bareconv.nn import layers
from bareconv.plan.cuda.fused.base import Fused
from bareconv.plan.cuda.step import Step, image_of
from bareconv.plan.graph import Node
