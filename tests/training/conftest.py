import torch
from exporter import keep_operators

torch.set_num_threads(1)
keep_operators()
