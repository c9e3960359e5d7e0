"""What the goldens are made of: the configs, prompt lengths and deliberate mistakes of every case, as data."""
