"""The customer's view: a projection of everybody's events, and its queries. Flat, since it has no rules of its own."""
