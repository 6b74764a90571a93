"""Pruning: cuts a student out of its teacher. What is cut away is healed by distillation, which is elsewhere."""
