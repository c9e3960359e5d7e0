"""Training of the demo model: tokenizer, network, optimizer steps, checkpoints, Hugging Face export."""
