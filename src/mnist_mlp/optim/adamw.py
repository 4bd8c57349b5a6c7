"""AdamW without torch's compiler."""

from inspect import unwrap

import torch


class WithoutCompiler:
    """A base class for optimisers that do not import torch's compiler.

    torch decorates these methods for `torch.compile`, and the first call imports the compiler: a
    second or more, for nothing. Here they are as torch wrote them, without the decorator.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class AdamW(WithoutCompiler, torch.optim.AdamW):
    """torch's fused AdamW, bit for bit.

    Source: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019.
    """

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))

    def __init__(self, params, lr: float, weight_decay: float):
        super().__init__(params, lr=lr, weight_decay=weight_decay, fused=True)
