"""One thread of torch: with tiny networks several wait for each other more than they work."""

import torch

torch.set_num_threads(1)
