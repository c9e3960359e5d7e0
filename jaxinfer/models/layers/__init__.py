"""The parts of the decoder: products, norms, rotary positions, attention, MLP."""
