"""The modality Gram matrix: how it is made, how two of them are compared, and what may pass."""
