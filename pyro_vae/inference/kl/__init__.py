"""KL control: floors, capacities, targets and total correlation."""
