"""Layers, blocks and models: what owns parameters and calls the operations of ``ops``."""

from bareconv.nn.blocks import Residual, Sequential
from bareconv.nn.layer import Flops, Layer, layer_from_config
from bareconv.nn.layers import (
    GELU,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    LeakyReLU,
    MaxPool2d,
    ReLU,
)
from bareconv.nn.model import Model, Summary

__all__ = [
    "GELU",
    "AvgPool2d",
    "BatchNorm",
    "Conv2d",
    "Dense",
    "Dropout",
    "Flatten",
    "Flops",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "Layer",
    "LeakyReLU",
    "MaxPool2d",
    "Model",
    "ReLU",
    "Residual",
    "Sequential",
    "Summary",
    "layer_from_config",
]
