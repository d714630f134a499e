"""Losses of human mesh recovery: functions of tensors, and modules where there is state."""
