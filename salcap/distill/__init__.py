"""Distilling large saliency teachers into small students: losses, teacher map cache, training."""
