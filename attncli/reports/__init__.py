"""What is said: a result becomes a report of blocks, which a window can show."""
