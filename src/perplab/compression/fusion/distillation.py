"""Training a few blocks to give what they and a removed one gave together.

- Inputs and targets of the group are computed once, in the model's dtype; only the group runs while it is trained.
- Adam without weight decay, betas 0.9 and 0.95, both learning rates on a cosine to zero, a step a batch.
- Batches differ by at most one window in size: a loss over the windows of a batch has nothing to say about one alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from perplab.compression.fusion.config import FuseConfig, LossName
from perplab.compression.fusion.fusion_layer import trainables
from perplab.errors import PerplabError
from perplab.models.blocks import BlockRunner

DistillationLoss = Callable[[Tensor, Tensor], Tensor]
"""Of what the group gives and what it should give, each (batch, length, width)."""
_BETAS = (0.9, 0.95)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a group of blocks should reproduce.

    Attributes:
        inputs: a batch each, (batch, length, width).
        targets: what the group gave before the removal, of the same shapes.
    """

    inputs: list[Tensor]
    targets: list[Tensor]


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over everything."""
    return F.mse_loss(output.float(), target.float())


def batch_kl(output: Tensor, target: Tensor) -> Tensor:
    """KL divergence between softmaxes over the windows of a batch, for each position and channel (FuseGPT).

    An error that all windows share leaves it unchanged, and its value depends on how windows are batched.

    Raises:
        PerplabError: there is one window, for which it is zero whatever the output.
    """
    if len(target) < 2:
        raise PerplabError("the loss batch_kl is zero for a batch of one window", "give 2 or more, or the loss mse")
    expected = F.log_softmax(target.float(), dim=0)
    return F.kl_div(F.log_softmax(output.float(), dim=0), expected, reduction="batchmean", log_target=True)


def token_kl(runner: BlockRunner, following: Sequence[int]) -> DistillationLoss:
    """KL divergence of the model's predictions, in nats a token.

    Args:
        runner: of the model.
        following: the blocks after the group, which are run and not trained.
    """

    def predictions(stream: Tensor) -> Tensor:
        parts = runner.anatomy
        logits = parts.logits(parts.last_hidden_state(runner.run_all(stream, following)))
        return F.log_softmax(logits.float(), dim=-1).flatten(0, 1)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            expected = predictions(target)
        return F.kl_div(predictions(output), expected, reduction="batchmean", log_target=True)

    return loss


def loss_of(name: LossName, runner: BlockRunner, following: Sequence[int]) -> DistillationLoss:
    """The loss of a name; `following` are the blocks after the group."""
    losses: dict[LossName, DistillationLoss] = {
        "mse": mse,
        "batch_kl": batch_kl,
        "token_kl": token_kl(runner, following),
    }
    return losses[name]


@torch.no_grad()
def lesson_of(runner: BlockRunner, batches: Sequence[Tensor], before: Sequence[int], group: Sequence[int]) -> Lesson:
    """Run the blocks before a group and the group.

    Args:
        runner: of the model.
        batches: token ids, each (batch, length).
        before: the blocks up to the group.
        group: its blocks, with the one that will go.
    """
    with parametrize.cached():
        inputs = [runner.run_all(runner.enter(batch), before) for batch in batches]
        return Lesson(inputs, [runner.run_all(stream, group) for stream in inputs])


def distil(
    runner: BlockRunner,
    group: Sequence[int],
    lesson: Lesson,
    loss: DistillationLoss,
    config: FuseConfig,
    generator: torch.Generator,
    watch: Callable[[int, int], None],
) -> tuple[float, float]:
    """Train the blocks of a group, which are trainable, on a lesson.

    Args:
        runner: of the model.
        group: the blocks that stay.
        lesson: what they read and should give.
        loss: how far from it they are.
        config: epochs and learning rates.
        generator: of the order of batches.
        watch: called with the steps taken and the steps in all.

    Returns:
        Mean loss over the lesson before and after.
    """
    optimizer = torch.optim.Adam(_parameter_groups([runner.blocks[index] for index in group], config), betas=_BETAS)
    steps = config.epochs * len(lesson.inputs)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    before = _mean_loss(runner, group, lesson, loss)
    for step, batch in enumerate(_order(len(lesson.inputs), config.epochs, generator), start=1):
        with parametrize.cached():  # a fused weight is computed once, however often a module reads it
            torch.autograd.backward(loss(runner.run_all(lesson.inputs[batch], group), lesson.targets[batch]))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        watch(step, steps)
    return before, _mean_loss(runner, group, lesson, loss)


def _parameter_groups(blocks: Sequence[nn.Module], config: FuseConfig) -> list[dict[str, object]]:
    found = [trainables(block) for block in blocks]
    groups = (
        ([parameter for one in found for parameter in one.coefficients], config.coefficient_learning_rate),
        ([parameter for one in found for parameter in one.others], config.learning_rate),
    )
    return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]


def _order(batches: int, epochs: int, generator: torch.Generator) -> Iterator[int]:
    for _ in range(epochs):
        yield from torch.randperm(batches, generator=generator).tolist()


@torch.no_grad()
def _mean_loss(runner: BlockRunner, group: Sequence[int], lesson: Lesson, loss: DistillationLoss) -> float:
    with parametrize.cached():
        losses = [
            float(loss(runner.run_all(stream, group), target)) * len(stream)
            for stream, target in zip(lesson.inputs, lesson.targets, strict=True)
        ]
    return sum(losses) / sum(map(len, lesson.inputs))
