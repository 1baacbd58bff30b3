"""What a run leaves to be read by people: a page with pictures."""
