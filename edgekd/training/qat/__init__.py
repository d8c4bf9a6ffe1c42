"""Fine-tuning with fake quantization (quantization-aware training)."""
