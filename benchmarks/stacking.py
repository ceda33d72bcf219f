"""Would one batched program train K models faster than K processes do? A question for a GPU.

A sweep over what does not change the shape (seed, learning rate, KL weight) could train its models as one: every layer
a `baddbmm` over K stacked weights, one Adam with a rate for each member. Here that is written by hand for the MLP of
`experiment=mlp_vae_mnist` (784-256-2, BCE), and compared with the same models one after the other and as processes that
share the device, each a bare loop.

    stacked     one program, its operations launched one by one
    graph       the same as a CUDA graph, on a GPU
    in turn     one model after the other
    processes   one process for each model, at most --processes at a time; starting them is not counted

    python benchmarks/stacking.py [--members 1 8 64] [--rounds 5]
"""

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable
from statistics import median

import torch
from throughput import clock, describe_machine, spread
from torch import Tensor
from torch.nn import functional as F

PIXELS, HIDDEN, LATENTS, IMAGES = 784, 256, 2, 8192
BETAS, EPSILON = (0.9, 0.999), 1e-8
SIZES = ((PIXELS, HIDDEN), (HIDDEN, 2 * LATENTS), (LATENTS, HIDDEN), (HIDDEN, PIXELS))


class Stack:
    """K models of one shape, trained together.

    Args:
        members: K.
        batch_size: images for each of them in a step.
        device: of everything.
    """

    def __init__(self, members: int, batch_size: int, device: str):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (IMAGES, PIXELS), generator=generator).to(device, torch.uint8)
        self.batch_size, self.members, self.device = batch_size, members, device
        self.parameters = []
        for fan_in, fan_out in SIZES:
            bound = 1 / math.sqrt(fan_in)
            for shape in ((members, fan_in, fan_out), (members, 1, fan_out)):
                value = torch.empty(shape).uniform_(-bound, bound, generator=generator).to(device)
                self.parameters.append(value.requires_grad_())
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.rates = torch.logspace(-4, -2, members, device=device).view(-1, 1, 1)  # one for each member
        self.count = torch.zeros((), device=device)

    def loss(self) -> Tensor:
        """The negative ELBO of each member on images of its own choice, nats per image, added up: 0-dim."""
        index = torch.randint(IMAGES, (self.members * self.batch_size,), device=self.device)
        x = self.images[index].view(self.members, self.batch_size, PIXELS).float().div_(255)  # (K, B, pixels)
        w1, b1, w2, b2, w3, b3, w4, b4 = self.parameters
        mean, log_var = torch.baddbmm(b2, torch.baddbmm(b1, x, w1).relu(), w2).chunk(2, dim=2)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        logits = torch.baddbmm(b4, torch.baddbmm(b3, z, w3).relu(), w4)
        bce = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum()
        return (bce + kl) / self.batch_size

    def step(self) -> None:
        """One step of Adam for every member."""
        gradients = torch.autograd.grad(self.loss(), self.parameters)
        with torch.no_grad():
            self.count.add_(1)
            corrections = [1 - beta**self.count for beta in BETAS]
            for parameter, gradient, (first, second) in zip(self.parameters, gradients, self.moments, strict=True):
                first.lerp_(gradient, 1 - BETAS[0])
                second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                scale = (second / corrections[1]).sqrt_().add_(EPSILON)
                parameter.sub_(self.rates * (first / corrections[0]) / scale)


def captured(stack: Stack) -> Callable[[], None]:
    """The step of a stack as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            stack.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stack.step()
    return graph.replay


def time_steps(step: Callable[[], None], steps: int, device: str) -> float:
    """Seconds of some steps, after three that warm up."""
    for _ in range(3):
        step()
    start = clock(device)
    for _ in range(steps):
        step()
    return clock(device) - start


def work(barrier, batch_size: int, steps: int, device: str, threads: int, results) -> None:
    """A process with one model, which waits for the others before it trains."""
    torch.set_num_threads(threads)
    step = Stack(1, batch_size, device).step
    time_steps(step, 1, device)
    barrier.wait()
    start = time.perf_counter()
    time_steps(step, steps, device)
    results.put((start, time.perf_counter()))


def processes(number: int, batch_size: int, steps: int, device: str) -> float:
    """Seconds from the first start to the last end of processes that train at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(number), context.SimpleQueue()
    threads = max(1, torch.get_num_threads() // number)
    workers = [
        context.Process(target=work, args=(barrier, batch_size, steps, device, threads, results)) for _ in range(number)
    ]
    for worker in workers:
        worker.start()
    times = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return max(end for _, end in times) - min(start for start, _ in times)


def main() -> None:
    """Measure and print a table: images per second of all members together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=None, help="by default 200 on a GPU, 20 on a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=None, help="by default 8 on a GPU, 2 on a CPU")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = args.steps or (200 if device == "cuda" else 20)
    most = args.processes or (8 if device == "cuda" else 2)
    print(f"{describe_machine(device)}, batch {args.batch_size}, {steps} steps, {args.rounds} rounds")
    print("images per second of all members together, median with quartiles")
    shared = most * args.batch_size * steps / median(processes(most, args.batch_size, steps, device) for _ in range(2))
    print(f"  {most} processes at a time: {shared:.0f}", flush=True)
    for members in args.members:
        paths = {"stacked": Stack(members, args.batch_size, device).step}
        if device == "cuda":
            paths["graph"] = captured(Stack(members, args.batch_size, device))
        paths["in turn"] = Stack(1, args.batch_size, device).step
        speeds: dict[str, list[float]] = {path: [] for path in paths}
        for _ in range(args.rounds):
            for path, step in paths.items():
                number = 1 if path == "in turn" else members
                speeds[path].append(number * args.batch_size * steps / time_steps(step, steps, device))
        print(
            f"  K={members}: " + ", ".join(f"{path} {spread(found, 0)}" for path, found in speeds.items()), flush=True
        )


if __name__ == "__main__":
    main()
