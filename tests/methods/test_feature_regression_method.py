"""Feature regression: what may not move, what is compared, other sensors and networks, rivals, resume, ranks."""
