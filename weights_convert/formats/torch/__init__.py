"""PyTorch files: `.pth`, `.pt`."""
