"""The customer's view: a projection of all services' events, and its queries. It has no rules of its own, so it has no
domain layer either."""
