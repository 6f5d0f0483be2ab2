"""Takes requests and cancellations, and owns the reservation's status."""
