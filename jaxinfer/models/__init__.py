"""What a network is: Hugging Face configs in (`registry`), one config-driven decoder out (`decoder`)."""
