"""What routing methods that read a request are made of: activations, least squares, mixtures; imports no method."""
