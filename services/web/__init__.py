"""The page: its files, and where one signs in. It has no store, no bus and no power of its own."""
