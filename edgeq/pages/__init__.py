"""What a person reads: terminal tables and the HTML page."""
