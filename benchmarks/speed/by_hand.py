"""A training step without autograd: gradients, AdamW and average by hand, for EnhancedNet alone.

`step_ideas.py` measures what it saves. The same kernels on the same numbers as in `fit`, so the
same weights; every result goes into the same memory in each step, where it stays in the caches.
"""

import torch

from mnist_mlp.data import epoch_generator

aten = torch.ops.aten


class Step:
    """A step of AdamW on the mean cross-entropy, for the model and the optimizer of a state."""

    def __init__(self, state):
        dtype = torch.bfloat16 if state.recipe.uses_bfloat16() else torch.float32
        self.state, (self.group,) = state, state.optimizer.param_groups
        self.master = [p.detach() for p in state.model.parameters()]
        for p in state.model.parameters():
            p.grad = torch.zeros_like(p)
        # Parameters, their gradients, first and second moments, and the numbers of steps.
        self.adamw = [], [], [], [], [], []
        state.optimizer._init_group(self.group, *self.adamw)
        self.weights, self.gradients = ([t.detach().to(dtype) for t in p] for p in self.adamw[:2])
        n, shapes = state.recipe.batch_size, [w.shape for w in self.weights[::2]]
        self.outputs = [torch.empty(n, n_out, dtype=dtype) for n_out, _ in shapes]
        self.input_gradients = [torch.empty(n, n_in, dtype=dtype) for _, n_in in shapes]
        self.averages = [p.detach() for p in state.ema.module.parameters()]

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Update weights and averages; return the logits and the loss."""
        rounded = self.weights[0].dtype != torch.float32
        if rounded:
            torch._foreach_copy_(self.weights, self.master)
        *inputs, logits = self.forward(images.to(self.weights[0].dtype))
        loss, gradient = cross_entropy(logits.float(), labels)
        self.backward(inputs, gradient.to(logits.dtype))
        if rounded:
            torch._foreach_copy_(self.adamw[1], self.gradients)
        torch._foreach_add_(self.adamw[-1], 1)
        names, (beta1, beta2) = ("lr", "weight_decay", "eps"), self.group["betas"]
        settings = {name: self.group[name] for name in names} | {"beta1": beta1, "beta2": beta2}
        torch._fused_adamw_(*self.adamw, **settings, amsgrad=False, maximize=False)
        ema = self.state.ema
        if ema.n_averaged:
            ema.multi_avg_fn(self.averages, self.master, ema.n_averaged)
        else:
            torch._foreach_copy_(self.averages, self.master)
        ema.n_averaged += 1
        return logits, loss

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the images, the output of each hidden layer, and the logits."""
        results, last = [images], len(self.outputs) - 1
        for i, buffer in enumerate(self.outputs):
            output, (weight, bias) = buffer[: len(images)], self.weights[2 * i : 2 * i + 2]
            torch.addmm(bias, results[-1], weight.T, out=output)
            results.append(output.relu_() if i < last else output)
        return results

    def backward(self, inputs: list[torch.Tensor], gradient: torch.Tensor) -> None:
        """Compute the gradients of all weights from that of the logits, the last layer first."""
        for i in reversed(range(len(inputs))):
            torch.mm(gradient.T, inputs[i], out=self.gradients[2 * i])
            torch.sum(gradient, 0, out=self.gradients[2 * i + 1])
            if i:
                buffer = self.input_gradients[i][: len(gradient)]
                gradient = torch.mm(gradient, self.weights[2 * i], out=buffer)
                relu = aten.threshold_backward.grad_input
                relu(gradient, inputs[i], 0, grad_input=gradient)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return the mean cross-entropy and its gradient by the logits."""
    logp, mean, no_index = logits.log_softmax(1), 1, -100
    more = labels, None, mean, no_index
    loss, total = aten.nll_loss_forward(logp, *more)
    gradient = aten.nll_loss_backward(torch.ones(()), logp, *more, total)
    return loss.item(), aten._log_softmax_backward_data(gradient, logp, 1, torch.float32)


def train_steps(state, train_set, epoch: int):
    """Train for one epoch without warps, as `mnist_mlp.train.train_steps` does; yield each step."""
    totals, step = state.totals, Step(state)
    order = torch.randperm(len(train_set), generator=epoch_generator(state.recipe.seed, epoch))
    state.optimizer._opt_called = True  # the schedule need not warn that it was not
    for indices in order.split(state.recipe.batch_size):
        images, labels = train_set.__getitems__(indices)
        logits, loss = step(images, labels)
        state.scheduler.step()
        totals.steps += 1
        totals.examples += len(labels)
        totals.correct += int((logits.argmax(1) == labels).sum())
        totals.loss += loss * len(labels)
        yield
