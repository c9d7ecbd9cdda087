"""A distribution of short sequences that can be summed over, as a network of exact conditionals."""

import itertools

import torch

LENGTH, VOCABULARY = 4, 3
MASK = VOCABULARY


def random_joint(seed=0):
    """p0 of every sequence, (VOCABULARY,) * LENGTH, float64."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand((VOCABULARY,) * LENGTH, dtype=torch.float64, generator=generator).pow(3)
    return weights / weights.sum()


def every_sequence():
    return torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))


def conditionals(joint):
    """A network that gives log p0(x^i = v | what is not masked), and what is given where it is not."""

    def network(ids):
        sequences = every_sequence()
        agrees = ((ids[:, None] == sequences) | (ids[:, None] == MASK)).all(dim=-1)
        weights = agrees * joint.flatten()
        one_hot = torch.nn.functional.one_hot(sequences, VOCABULARY).double()
        return torch.einsum("bs,siv->biv", weights, one_hot).log().clamp(min=-60)

    return network


def disagreeing(seed=0):
    """A network whose conditionals fit no joint distribution: a logit table of every pattern of ids."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn((VOCABULARY + 1,) * LENGTH + (LENGTH, VOCABULARY), dtype=torch.float64, generator=generator)
    return lambda ids: table[tuple(ids.T)]
