"""What all servers share: one `Frontend.submit`, from a request to its stream, over one engine or several."""
