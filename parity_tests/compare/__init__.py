"""Two models layer by layer: the first difference, the layer that is wrong by itself, gradients, training."""
