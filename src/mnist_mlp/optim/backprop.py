"""The training step of EnhancedNet without autograd: the same numbers in less time.

The textbook step, in `mnist_mlp.train`, reaches its kernels through autograd, `torch.optim` and
`AveragedModel`. Here they are called directly, and each result goes into the same memory in every
step, where it stays in the caches. `benchmarks/speed/step_ideas.py` measures what that saves.
Source: Rumelhart, Hinton & Williams, "Learning representations by back-propagating errors", 1986.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from mnist_mlp.optim.adamw import AdamW

aten = torch.ops.aten
threshold_backward = aten.threshold_backward.grad_input


def applies(state, train_set) -> bool:
    """Return whether a `Step` does to an EnhancedNet what the textbook step would.

    It does on the CPU, with AdamW of all weights and the plain cross-entropy of logits and labels,
    unless a layer was frozen or replaced, or something has a hook.
    """
    recipe, optimizer = state.recipe, state.optimizer
    (_, *layers), weights = state.model.modules(), list(state.model.parameters())
    hooks = [w._backward_hooks or w._post_accumulate_grad_hooks for w in weights]
    for owner in (*state.model.modules(), optimizer):
        hooks += [hook for name, hook in vars(owner).items() if name.endswith("_hooks")]
    return (
        [type(layer) for layer in layers] == [nn.Linear] * 5
        and [weight.ndim for weight in weights] == [2, 1] * 5
        and all(weight.requires_grad for weight in weights)
        and all(t.device.type == "cpu" for t in (*weights, train_set.images))
        and type(optimizer) is AdamW
        and [[*map(id, g["params"])] for g in optimizer.param_groups] == [[*map(id, weights)]]
        and (recipe.loss_fn == "cross-entropy" and not recipe.label_smoothing)
        and train_set.teacher_logits is None
        and not (any(hooks) or _has_any_global_hook())
        and not any("forward" in vars(module) for module in state.model.modules())
    )


class Step:
    """A step of AdamW on the mean cross-entropy, for the model and the optimizer of a state."""

    def __init__(self, state):
        dtype = torch.bfloat16 if state.recipe.uses_bfloat16() else torch.float32
        self.state, (self.group,) = state, state.optimizer.param_groups
        self.masters = [p.detach() for p in state.model.parameters()]
        for p in state.model.parameters():
            p.grad = torch.zeros_like(p)
        # Parameters, their gradients, first and second moments, and the numbers of steps.
        self.adamw: tuple[list, ...] = [], [], [], [], [], []
        state.optimizer._init_group(self.group, *self.adamw)
        self.copies, self.gradients = ([t.detach().to(dtype) for t in p] for p in self.adamw[:2])
        # One tensor holds the numbers of steps, so that one operation counts them all.
        self.steps = torch.stack(self.adamw[-1])
        self.adamw[-1][:] = self.steps
        for p, steps in zip(state.model.parameters(), self.steps, strict=True):
            state.optimizer.state[p]["step"] = steps
        self.averages = [p.detach() for p in state.ema.module.parameters()] if state.ema else []
        self.rounded = dtype != torch.float32
        self.weights, self.biases = self.copies[::2], self.copies[1::2]
        self.outputs = [bias.new_empty(0, len(bias)) for bias in self.biases]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the images, the output of each hidden layer, and the logits."""
        if self.rounded:
            torch._foreach_copy_(self.copies, self.masters)
        if len(images) != len(self.outputs[0]):
            self.outputs = [bias.new_empty(len(images), len(bias)) for bias in self.biases]
            self.output_gradients = [torch.empty_like(output) for output in self.outputs]
        results, last = [images.to(self.weights[0].dtype)], self.outputs[-1]
        for weight, bias, output in zip(self.weights, self.biases, self.outputs, strict=True):
            if self.rounded:
                torch.addmm(bias, results[-1], weight.T, out=output)  # rounds once
            else:  # faster: addmm would first copy the bias into each row
                torch.mm(results[-1], weight.T, out=output).add_(bias)
            results.append(output if output is last else output.relu_())
        return results

    def backward(self, inputs: list[torch.Tensor], gradient: torch.Tensor) -> None:
        """Compute the gradients of all weights from that of the logits, the last layer first.

        `inputs`: of each layer, as `forward` returns them. `gradient`: of shape (N, classes).
        """
        gradient = gradient.to(self.weights[0].dtype)
        for i in reversed(range(len(inputs))):
            torch.mm(gradient.T, inputs[i], out=self.gradients[2 * i])
            torch.sum(gradient, 0, out=self.gradients[2 * i + 1])
            if i:
                before = self.output_gradients[i - 1]
                torch.mm(gradient, self.weights[i], out=before)
                threshold_backward(before, inputs[i], 0, grad_input=before)
                gradient = before
        if self.rounded:
            torch._foreach_copy_(self.adamw[1], self.gradients)

    def update(self) -> None:
        """Update the weights by their gradients, as `torch.optim.AdamW` does."""
        self.steps += 1
        names, (beta1, beta2) = ("lr", "weight_decay", "eps"), self.group["betas"]
        settings = {name: self.group[name] for name in names} | {"beta1": beta1, "beta2": beta2}
        torch._fused_adamw_(*self.adamw, **settings, amsgrad=False, maximize=False)

    def average(self) -> None:
        """Update the moving average of the weights, as `AveragedModel` does."""
        if (ema := self.state.ema) is None:
            return
        if n_averaged := int(ema.n_averaged):
            ema.multi_avg_fn(self.averages, self.masters, n_averaged)
        else:
            torch._foreach_copy_(self.averages, self.masters)
        ema.n_averaged += 1


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return the mean cross-entropy, in nats, and its gradient by the logits."""
    logp, mean, no_index = logits.log_softmax(1), 1, -100
    more = labels, None, mean, no_index
    loss, total = aten.nll_loss_forward(logp, *more)
    gradient = aten.nll_loss_backward(logp.new_ones(()), logp, *more, total)
    return loss.item(), aten._log_softmax_backward_data(gradient, logp, 1, torch.float32)


@torch.no_grad()
def train_steps(state, train_set) -> Iterator[None]:
    """Train for one epoch, as the textbook loop of `mnist_mlp.train`; yield after each step."""
    step = Step(state)
    state.optimizer._opt_called = True  # else the schedule warns that it did not step
    for images, labels in state.batches(train_set):
        *inputs, logits = step.forward(images)
        mean_loss, gradient = cross_entropy(logits.float(), labels)
        state.check_loss(mean_loss)
        step.backward(inputs, gradient)
        step.update()
        state.scheduler.step()
        step.average()
        state.count(logits, labels, mean_loss)
        yield
