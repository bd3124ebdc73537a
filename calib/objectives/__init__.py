"""What must stay the same: objectives that a reconstruction minimises."""
