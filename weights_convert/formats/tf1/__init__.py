"""TensorFlow 1 checkpoints: an index and data files under one prefix."""
