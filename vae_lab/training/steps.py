"""The optimizer steps of a batch: the model's, then its adversary's; and a CUDA graph of them.

Clipping, accumulation and the scaling for float16 are done here as Lightning does them where it optimizes by itself.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from vae_lab.data.batches import Batch
from vae_lab.errors import one_line
from vae_lab.objectives import Context

log = logging.getLogger(__name__)
HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
# What Python reads of a tensor, and results whose size is only known when they are there.
WAITING = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
GLOBAL_HOOKS = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)  # of every optimizer of the process
EAGER_STEPS = 3  # before a capture: the optimizer's state and the libraries' workspaces exist only then


class Steps:
    """Takes the steps of one batch after the other.

    Args:
        lit: the module that is trained, with `vae`, `objective` and `adversary`.
        optimizers: of the model, and of the adversary if there is one.
        to_pixels: from the bytes of a batch to what the model sees.
        accumulate: batches whose gradients make one step, >= 1.
        clip_val: largest norm of the gradient, or largest value of one of its elements; None or 0 clips nothing.
        clip_algorithm: `norm` or `value`.
    """

    def __init__(
        self,
        lit: LightningModule,
        optimizers: Sequence[Optimizer],
        to_pixels: Callable[[Batch], Batch],
        accumulate: int,
        clip_val: float | None,
        clip_algorithm: str,
    ):
        self.lit: Any = lit
        self.optimizers, self.to_pixels, self.accumulate = optimizers, to_pixels, accumulate
        self.fused = {optimizer: FusedAdam(optimizer) for optimizer in optimizers if FusedAdam.fits(optimizer)}
        self.clip_val, self.clip_algorithm = clip_val, clip_algorithm
        # Looked up once, so that the device does not wait for it between the kernels of a step.
        self.vae, self.objective, self.adversary = self.lit.vae, self.lit.objective, self.lit.adversary
        self.kind, self.strategy, precision = lit.device.type, lit.trainer.strategy, lit.trainer.precision_plugin
        self.is_parallel = isinstance(self.strategy, ParallelStrategy)
        self.is_cast = isinstance(precision, MixedPrecision)
        self.scaler = getattr(precision, "scaler", None)
        self.listeners = listeners(lit.trainer.callbacks, HOOKS)
        self.keys: list[str] = []  # of the terms

    def __call__(self, batch: Batch, context: Context, opens: bool, closes: bool) -> Tensor:
        """Add the gradients of a batch, and take the steps where it closes a window of accumulation.

        Args:
            batch: bytes (B, C, H, W), and labels.
            context: for the objective.
            opens: whether the batch is the first of its window.
            closes: whether it is the last one.

        Returns:
            The terms that `keys` names, (number of keys,).
        """
        batch, adversary = self.to_pixels(batch), self.adversary
        if adversary is not None:
            adversary.requires_grad_(False)  # its gradients come from its own loss only
        if opens:
            for optimizer in self.optimizers:
                self._tell("on_before_zero_grad", optimizer)
                if type(optimizer).zero_grad is not Optimizer.zero_grad:
                    optimizer.zero_grad()
                for parameter in parameters_of(optimizer):  # without zero_grad's bookkeeping, four times as long
                    parameter.grad = None
        terms = self.objective(self.vae, batch, context)
        self._descend(terms["loss"], self.optimizers[0], closes)
        if adversary is not None:
            adversary.requires_grad_(True)
            judged = self.objective.adversary_loss(self.vae, batch, context)
            self._descend(judged["discriminator_loss"], self.optimizers[1], closes)
            terms = {**terms, **judged}
        self.keys = list(terms)
        with torch.no_grad():
            return torch.stack(list(terms.values()))

    def _descend(self, loss: Tensor, optimizer: Optimizer, closes: bool) -> None:
        """Add the gradients of a loss; clip them and take a step if its window closes."""
        loss = loss / self.accumulate if self.accumulate > 1 else loss
        # Autocast is for the forward pass alone.
        with torch.autocast(self.kind, enabled=False) if self.is_cast else nullcontext():
            if self.is_parallel:  # processes exchange gradients once for each step
                with nullcontext() if closes else self.strategy.block_backward_sync():
                    self.lit.manual_backward(loss)
            else:
                self._tell("on_before_backward", loss)
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
                self._tell("on_after_backward")
            if closes:
                self._tell("on_before_optimizer_step", optimizer)
                self._clip(optimizer)
                if self.scaler is None:
                    self.fused.get(optimizer, optimizer.step)()
                else:
                    self.scaler.step(optimizer)
                    self.scaler.update()
        if self.is_cast:
            torch.clear_autocast_cache()  # of the weights before the step

    def _clip(self, optimizer: Optimizer) -> None:
        if not self.clip_val:
            return
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        by_value = self.clip_algorithm == "value"
        (nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_)(parameters_of(optimizer), self.clip_val)

    def _tell(self, hook: str, *args: Any) -> None:
        """Call a hook of the callbacks that have one of them."""
        for callback in self.listeners:
            getattr(callback, hook)(self.lit.trainer, self.lit, *args)


def listeners(callbacks: Iterable[Callback], hooks: Sequence[str]) -> list[Callback]:
    """The callbacks that have one of these hooks of Lightning."""
    return [callback for callback in callbacks if any(is_overridden(hook, callback, Callback) for hook in hooks)]


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All that it trains."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class FusedAdam:
    """Takes the steps of a fused Adam or AdamW as its `step` does, with the tensors of its state looked up once.

    `step` looks all of them up every time, which takes longer than its kernels: a thirtieth of the step of a small
    model.

    Args:
        optimizer: one that `fits`.
    """

    def __init__(self, optimizer: Optimizer):
        self.optimizer: Any = optimizer
        self.state: Any = None  # in which the tensors were found; loading a checkpoint makes another one
        self.found: list[list[list[Tensor]]] = []  # of each group: both averages, and the numbers of steps

    @staticmethod
    def fits(optimizer: Optimizer) -> bool:
        """Whether it is a fused Adam or AdamW without amsgrad, for parameters of one type."""
        if type(optimizer) not in (Adam, AdamW):
            return False
        types = {(parameter.device, parameter.dtype) for parameter in parameters_of(optimizer)}
        return len(types) == 1 and all(group["fused"] and not group["amsgrad"] for group in optimizer.param_groups)

    def __call__(self) -> None:
        """Take a step."""
        optimizer, groups = self.optimizer, self.optimizer.param_groups
        gradients = [[parameter.grad for parameter in group["params"]] for group in groups]
        is_partial = any(gradient is None for of_group in gradients for gradient in of_group)
        is_heard = any((*GLOBAL_HOOKS, optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks))
        is_known = optimizer.state is self.state and len(self.found) == len(groups)
        if not is_known or is_partial or is_heard:
            optimizer.step()  # which makes the state where there is none
            self._find()
            return
        with torch.no_grad():
            for group, of_group, (means, squares, steps) in zip(groups, gradients, self.found, strict=True):
                torch._foreach_add_(steps, 1)
                kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
                settings = {name: group[name] for name in ("lr", "weight_decay", "eps", "maximize", "amsgrad")}
                settings["beta1"], settings["beta2"] = group["betas"]
                kernel(group["params"], of_group, means, squares, [], steps, **settings)

    def _find(self) -> None:
        """Look up the state, if each parameter has one."""
        state, groups = self.optimizer.state, self.optimizer.param_groups
        if all(parameter in state for parameter in parameters_of(self.optimizer)):
            names = ("exp_avg", "exp_avg_sq", "step")
            self.found = [[[state[p][name] for p in group["params"]] for name in names] for group in groups]
            self.state = state


class Waits(TorchDispatchMode):
    """Notes the operations for which Python waits for a device, which cost time and break the capture of a graph.

    It sees what this thread computes: on a GPU not the backward pass, in which none of ours waits.

    Args:
        kind: of the device, `cuda` or `cpu`.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name, first = func.overloadpacket.__name__, args[0] if args else None
        if isinstance(first, Tensor) and first.device.type == self.kind:
            is_mask = name.startswith(("index", "_unsafe_index")) and isinstance(args[1], list | tuple)
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool] if is_mask else []
            is_moved = name == "_to_copy" and result.device != first.device
            if name in WAITING or masks or is_moved:
                self.found.add(name)
        return result


class StepGraph:
    """Takes the steps of `Steps` as a CUDA graph: captured once for each shape of a batch, then replayed.

    A capture fixes what Python decides. Objective and posterior may depend on the step only before their
    `varies_until`, so steps before that are taken one operation at a time; the learning rate is a tensor while a step
    is taken.

    Args:
        steps: what to capture.
    """

    def __init__(self, steps: Steps):
        self.steps = steps
        of_posterior = getattr(steps.lit.vae.posterior, "varies_until", 0)
        self.varies_until = max(getattr(steps.lit.objective, "varies_until", math.inf), of_posterior)
        self.stream = torch.cuda.Stream()
        self.taken: dict[torch.Size, int] = {}  # steps one operation at a time, by shape
        self.captured: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Batch, Tensor]] = {}
        groups = [group for optimizer in steps.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["capturable"] = True
        self.rates = [(group, torch.zeros((), device=steps.lit.device)) for group in groups]
        self.plain = [math.nan for _ in groups]  # what the tensors hold
        self.is_refused = False

    @property
    def keys(self) -> list[str]:
        """The names of the terms."""
        return self.steps.keys

    def __call__(self, batch: Batch, context: Context, opens: bool, closes: bool) -> Tensor:
        """As `Steps`."""
        shape = batch.x.shape
        with self._rates_as_tensors():
            if shape in self.captured and context.step >= self.varies_until:
                graph, static, terms = self.captured[shape]
                static.x.copy_(batch.x)
                if static.y is not None and batch.y is not None:
                    static.y.copy_(batch.y)
                graph.replay()
                return terms.clone()
            self.stream.wait_stream(torch.cuda.current_stream())
            is_tried, waits = context.step >= self.varies_until and not self.is_refused, Waits(self.steps.kind)
            is_last = is_tried and self.taken.get(shape, 0) == EAGER_STEPS - 1
            with torch.cuda.stream(self.stream), waits if is_last else nullcontext():
                terms = self.steps(batch, context, opens, closes)
            torch.cuda.current_stream().wait_stream(self.stream)
            if is_tried:
                self.taken[shape] = self.taken.get(shape, 0) + 1
                if waits.found:  # a capture that fails leaves the random generator unusable
                    self.is_refused = True
                    log.info("no CUDA graph: a step waits for the device (%s)", ", ".join(sorted(waits.found)))
                elif self.taken[shape] == EAGER_STEPS:
                    self._capture(Batch(batch.x.clone(), None if batch.y is None else batch.y.clone()), context)
        return terms

    def _capture(self, static: Batch, context: Context) -> None:
        graph = torch.cuda.CUDAGraph()
        torch.clear_autocast_cache()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                terms = self.steps(static, context, True, True)
        except RuntimeError as error:
            reason = f"a step cannot be captured ({one_line(error)})"
            raise ValueError(f"trainer.cuda_graph=true: {reason}; set trainer.cuda_graph=false") from error
        self.captured[static.x.shape] = graph, static, terms
        log.info("the step for batches of %d is a CUDA graph from step %d on", len(static.x), context.step + 1)

    @contextmanager
    def _rates_as_tensors(self) -> Iterator[None]:
        """Hold the learning rates in tensors, which a captured step reads."""
        plain = [group["lr"] for group, _ in self.rates]
        for (group, rate), value, before in zip(self.rates, plain, self.plain, strict=True):
            if value != before:
                rate.fill_(value)
            group["lr"] = rate
        self.plain = plain
        try:
            yield
        finally:
            for (group, _), value in zip(self.rates, plain, strict=True):
                group["lr"] = value


def why_eager(steps: Steps) -> str | None:
    """Why the steps cannot be a CUDA graph; None if they can."""
    if steps.lit.device.type != "cuda":
        return "it needs a GPU"
    if steps.is_parallel or steps.accumulate > 1 or steps.scaler is not None:
        return "it needs one process, trainer.accumulate_grad_batches=1 and no 16-mixed"
    if steps.listeners:
        return f"{type(steps.listeners[0]).__name__} looks at every step"
    if not hasattr(steps.lit.objective, "varies_until"):
        return f"{type(steps.lit.objective).__name__} does not say until when it varies with the step (varies_until)"
    if not all("capturable" in group for optimizer in steps.optimizers for group in optimizer.param_groups):
        return f"{type(steps.optimizers[0]).__name__} cannot be captured"
    return None
