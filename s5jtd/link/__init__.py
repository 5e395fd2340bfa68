"""What a line may carry: budgets by the clock, the way that keeps to them, and how much at a time."""
