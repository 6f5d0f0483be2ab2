"""Clients in other languages, made of a release's files alone, and what is checked with Go: `./dev test -e clients`."""
