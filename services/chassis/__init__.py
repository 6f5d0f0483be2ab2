"""What every service stands on. It knows no noun of the domain and imports no service."""
