"""What evaluation needs of a server. The rest of it is `jaxinfer.evaluation`."""
