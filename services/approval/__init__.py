"""Says yes or no at once: hospitals, their capacity per day, and one active booking per person."""
