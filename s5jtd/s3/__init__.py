"""What one side's endpoints answer: listings and heads by plain signed requests, health, and whose keys."""
