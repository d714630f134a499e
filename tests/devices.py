"""Where tests of the kernels run: everywhere on the CPU, and on CUDA where there is such a device."""

import torch

DEVICES = ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
