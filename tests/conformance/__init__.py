"""`make conformance`: a small pool over TLS with a real server and worker, and every case of the suite against it."""
