"""The modality Gram matrix: how it is computed, how two of them are compared, and which differences may pass."""
