"""HDF5 files of Keras: `.weights.h5`, `.keras`, `.h5`."""
