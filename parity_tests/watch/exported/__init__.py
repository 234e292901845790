"""Exported artefacts as models: ONNX, SavedModel, LiteRT, TorchScript and others, one file for each kind."""
