"""How the embedded model is made. The service never imports this."""
