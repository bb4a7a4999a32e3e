"""`make demo-federation`: campaigns over real processes on loopback, with TLS, node authentication and attacks."""
