"""Probabilistic finite automata: small random regular languages whose next-symbol distribution is known exactly.

Decisions:
- An automaton is its table of transitions. Every state accepts, every state has at least one edge, and the edges of a
  state are equally likely, so the table says all: the language is prefix-closed and nothing tells where a string ends.
- State 0 is the start. No edge is -1.
- Two automata have one canonical key just when they accept the same strings: the key is the table of the minimal
  automaton, its states numbered breadth-first. As edges are equally likely, they then give the same probabilities too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError

NO_EDGE = -1

Range = tuple[int, int]
"""Smallest and largest value, both of which occur."""

_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Automaton:
    """A probabilistic finite automaton without end-of-string probabilities.

    Args:
        transitions: (states, symbols) the state that each symbol leads to; -1 where there is no edge.

    Raises:
        PerplabError: the table is not one of states, or a state has no edge.
    """

    transitions: _Ids

    def __post_init__(self) -> None:
        """Refuse a table that walks could leave."""
        table = self.transitions
        if table.ndim != 2 or not table.size or table.min() < NO_EDGE or table.max() >= len(table):
            raise PerplabError(
                f"a transition table of shape {table.shape} that does not lead to its own states",
                "give (states, symbols) with entries from -1 to states - 1",
            )
        stuck = np.flatnonzero((table == NO_EDGE).all(axis=1))
        if len(stuck):
            raise PerplabError(f"state {stuck[0]} has no edge", "give each state one edge or more")

    @property
    def out_degree(self) -> _Ids:
        """(states,) edges of each state."""
        return (self.transitions != NO_EDGE).sum(axis=1)

    def next_distribution(self, states: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Probability of each symbol in a state, (..., symbols) for (...) states."""
        table = self.transitions != NO_EDGE
        distribution: npt.NDArray[np.float64] = (table / table.sum(axis=1, keepdims=True))[np.asarray(states)]
        return distribution

    def step(self, state: int, symbol: int) -> int:
        """Where `symbol` leads.

        Raises:
            PerplabError: the state has no such edge.
        """
        target = int(self.transitions[state, symbol])
        if target == NO_EDGE:
            raise PerplabError(
                f"state {state} has no edge for symbol {symbol}", "give strings that the automaton accepts"
            )
        return target

    def accepts(self, string: npt.ArrayLike) -> bool:
        """Whether a walk from the start spells the string."""
        state = 0
        for symbol in np.asarray(string, dtype=np.int64):
            state = int(self.transitions[state, symbol])
            if state == NO_EDGE:
                return False
        return True

    def sample(self, random: np.random.Generator, length: int) -> tuple[_Ids, _Ids]:
        """Walk from the start.

        Args:
            random: where the choices come from.
            length: of the string.

        Returns:
            The string (length,), and the state before each of its symbols (length,).
        """
        edges = [np.flatnonzero(row != NO_EDGE).tolist() for row in self.transitions]
        table = self.transitions.tolist()
        string, states, state = [], [], 0
        for chance in random.random(length).tolist():
            symbol = edges[state][int(chance * len(edges[state]))]
            string.append(symbol)
            states.append(state)
            state = table[state][symbol]
        return np.array(string, dtype=np.int64), np.array(states, dtype=np.int64)

    def strings(self, length: int) -> Iterator[tuple[int, ...]]:
        """Every accepted string of this length, in lexicographic order."""
        return self._spelled(0, length)

    def minimise(self) -> "Automaton":
        """The smallest automaton of the same language, its states in breadth-first order.

        States are split until all of a class have edges for the same symbols into the same classes; then classes that
        no string reaches are left out.
        """
        classes = np.zeros(len(self.transitions), dtype=np.int64)
        while True:
            targets = np.where(self.transitions == NO_EDGE, NO_EDGE, classes[self.transitions])
            signatures = np.column_stack((classes, targets))
            _, first, refined = np.unique(signatures, axis=0, return_index=True, return_inverse=True)
            if len(first) == classes.max() + 1:
                return Automaton(_breadth_first(targets[first], int(refined[0])))
            classes = refined

    def canonical_key(self) -> str:
        """The same for all automata of one language, whatever their states are called; different for others."""
        return repr(self.minimise().transitions.tolist())

    def _spelled(self, state: int, length: int) -> Iterator[tuple[int, ...]]:
        if length == 0:
            yield ()
            return
        for symbol in np.flatnonzero(self.transitions[state] != NO_EDGE).tolist():
            for rest in self._spelled(int(self.transitions[state, symbol]), length - 1):
                yield symbol, *rest


def sample_automaton(
    random: np.random.Generator, *, states: Range, alphabet: Range, out_degree: Range, symbols: int
) -> Automaton:
    """Draw an automaton, minimal and without states that nothing reaches.

    Every number is drawn uniformly from its range. The edges of a state have distinct symbols and distinct targets,
    never the state itself, until minimising makes one of several states.

    Args:
        random: where the choices come from.
        states: how many, before minimising.
        alphabet: how many of the symbols occur in the automaton.
        out_degree: edges of a state.
        symbols: how many there are to choose from.

    Raises:
        PerplabError: a range is empty, or a state cannot have so many edges or an automaton so many symbols.
    """
    _check_ranges(states, alphabet, out_degree, symbols)
    count = int(random.integers(*states, endpoint=True))
    letters = random.choice(symbols, int(random.integers(*alphabet, endpoint=True)), replace=False)
    table = np.full((count, symbols), NO_EDGE)
    for state in range(count):
        edges = int(random.integers(*out_degree, endpoint=True))
        others = random.choice(count - 1, edges, replace=False)
        table[state, random.choice(letters, edges, replace=False)] = others + (others >= state)
    return Automaton(table).minimise()


def _check_ranges(states: Range, alphabet: Range, out_degree: Range, symbols: int) -> None:
    for name, (least, most) in (("states", states), ("alphabet", alphabet), ("out_degree", out_degree)):
        if not 1 <= least <= most:
            raise PerplabError(f"{name} from {least} to {most}", "give a range of positive numbers, smallest first")
    if alphabet[1] > symbols:
        raise PerplabError(f"an alphabet of {alphabet[1]} out of {symbols} symbols", "give a smaller alphabet")
    if out_degree[1] > min(states[0] - 1, alphabet[0]):
        raise PerplabError(
            f"{out_degree[1]} edges of a state among {states[0]} states and {alphabet[0]} symbols",
            "give fewer edges: each leads to another state by another symbol",
        )


def _breadth_first(table: _Ids, start: int) -> _Ids:
    """The part of a table that `start` reaches, its states in the order in which a breadth-first walk meets them."""
    number = {start: 0}
    for state in (queue := [start]):
        for target in table[state].tolist():
            if target != NO_EDGE and target not in number:
                number[target] = len(queue)
                queue.append(target)
    renamed = np.array([number.get(state, NO_EDGE) for state in range(len(table))] + [NO_EDGE])
    return renamed[table[queue]]
