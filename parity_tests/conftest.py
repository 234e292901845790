"""Shared set-up of the tests: quiet TensorFlow, and nothing that depends on the machine's settings."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
