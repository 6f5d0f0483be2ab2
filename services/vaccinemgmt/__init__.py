"""Owns lots and doses: completes bookings with a real dose, and takes it back on cancellation."""
