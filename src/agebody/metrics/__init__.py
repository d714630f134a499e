"""How far a prediction is from the truth: functions of tensors, in the units of their input."""
