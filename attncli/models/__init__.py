"""Pretrained checkpoints: families, layouts, configurations, layers."""
