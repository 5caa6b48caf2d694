"""One thread: the tests' tensors are small, and thread pools of two processes fight."""

import torch

torch.set_num_threads(1)
