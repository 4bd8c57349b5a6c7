"""Files that survive faults and strangers: weights, cards, records and training checkpoints."""
