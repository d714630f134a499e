"""Every SMPL-family body from newborn to adult behind one differentiable layer."""
