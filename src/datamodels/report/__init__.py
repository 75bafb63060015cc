"""What is right about a run, in numbers, and the page of a validation."""
