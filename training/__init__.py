"""Training of the embedded model. The service never imports this."""
