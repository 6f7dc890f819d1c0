"""Typed fusion: put the vertices of an acyclic graph into few convex groups of one colour each.

The algorithm is the ordered typed fusion of Kennedy and McKinley ("Typed Fusion with Applications
to Parallel and Sequential Code Generation", TR93-208, Rice University, 1993), which they made for
loops. Vertices of a colour (an engine) may share a group; the others (the host) stay alone. For one
colour, let the level of a vertex be the most runs of the colour, its own included, that come one
after the other on a path to it, with something else between. The vertices of one level of the
colour form a group. That settles what one asks of clusters:

* Convex, without a check: levels never fall along an edge, and a path that leaves the group of
  level k for something else meets the colour again at level k + 1 at least.
* Acyclic quotient, for the same reason.
* Fewest: some path has as many runs as there are levels, and no two of its runs can share a convex
  group. So no partition has fewer groups and no two groups can be merged; vertices without a path
  between them share a group whenever that is possible.
* Canonical: a level depends on the graph alone, not on the order or the names of vertices.
* Linear: one sweep over the edges for each colour. (Growing clusters node by node, with a cycle
  check for each merge, needs an incremental topological order, such as Pearce and Kelly's of 2006,
  and gives neither the fewest clusters nor a canonical result.)

With several colours the fewest groups are hard to find (shortest common supersequence is a special
case), so colours are fused in order: the first, the preferred engine, gets its fewest; its groups
become single vertices; then comes the next.
"""

from __future__ import annotations

from collections.abc import Sequence

from xrt.graph import stable_order

NO_COLOUR = -1
"""Colour of a vertex that stays alone."""


class DisjointSets:
    """Union-find over 0 .. size - 1; the representative of a set is its least member."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        """The representative of the set of `item`."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def union(self, left: int, right: int) -> None:
        """Merge the sets of `left` and `right`."""
        left, right = self.find(left), self.find(right)
        if left != right:
            self._parent[max(left, right)] = min(left, right)

    def sets(self) -> dict[int, list[int]]:
        """Members by representative, both ascending."""
        result: dict[int, list[int]] = {}
        for item in range(len(self._parent)):
            result.setdefault(self.find(item), []).append(item)
        return result


def contract(predecessors: Sequence[Sequence[int]], block: Sequence[int]) -> list[list[int]]:
    """The predecessors of blocks, where vertex v is part of `block[v]`, without self loops."""
    result: list[list[int]] = [[] for _ in range(1 + max(block, default=-1))]
    for vertex, sources in enumerate(predecessors):
        target = block[vertex]
        result[target].extend(block[source] for source in sources if block[source] != target)
    return result


def compact(labels: Sequence[int]) -> list[int]:
    """Labels renumbered 0, 1, ... by first appearance."""
    number: dict[int, int] = {}
    return [number.setdefault(label, len(number)) for label in labels]


def fuse(
    predecessors: Sequence[Sequence[int]], colours: Sequence[int], order: Sequence[int]
) -> list[int]:
    """The block of each vertex of an acyclic graph: 0, 1, ... by first appearance.

    Vertices of one block have one colour. Blocks are convex and their quotient graph is acyclic.

    Args:
        predecessors: For each vertex, the vertices with an edge to it.
        colours: The colour of each vertex; `NO_COLOUR` gives it a block of its own.
        order: The colours, in order of preference.
    """
    block = list(range(len(predecessors)))
    colour_of = list(colours)
    for colour in order:
        if colour not in colours:
            continue
        quotient = contract(predecessors, block)
        level = levels(quotient, colour_of, colour)
        pull_islands(quotient, colour_of, colour, level)
        first: dict[int, int] = {}
        merged = [
            first.setdefault(level[index], index) if shade == colour else index
            for index, shade in enumerate(colour_of)
        ]
        numbers = compact(merged)
        block = [numbers[index] for index in block]
        shades = dict(zip(numbers, colour_of, strict=True))
        colour_of = [shades[index] for index in range(len(shades))]
    return compact(block)


def levels(predecessors: Sequence[Sequence[int]], colours: Sequence[int], colour: int) -> list[int]:
    """For each vertex, the most runs of `colour` on a path that ends with it, its own included."""
    level = [0] * len(predecessors)
    for vertex in stable_order(predecessors):
        if colours[vertex] == colour:
            level[vertex] = max(
                (level[p] + (colours[p] != colour) for p in predecessors[vertex]), default=1
            )
        else:
            level[vertex] = max((level[p] for p in predecessors[vertex]), default=0)
    return level


def pull_islands(
    predecessors: Sequence[Sequence[int]],
    colours: Sequence[int],
    colour: int,
    level: list[int],
) -> None:
    """Move islands of `colour` whose results only later groups use into the first of these.

    Levels are as early as possible. An island (a connected part of a group) with all its uses in
    later groups of the colour then only adds to what crosses between groups. Moving it up keeps
    levels from falling along edges, and leaves no level empty: the path that forces a level to
    exist leaves its island for another colour. Edits `level` in place, last level first.
    """
    labels = [
        number if shade == colour else -1 - index
        for index, (number, shade) in enumerate(zip(level, colours, strict=True))
    ]
    islands = [i for i in find_islands(predecessors, labels) if colours[i[0]] == colour]
    successors: list[list[int]] = [[] for _ in predecessors]
    for vertex, sources in enumerate(predecessors):
        for source in sources:
            successors[source].append(vertex)
    islands.sort(key=lambda island: -level[island[0]])
    for island in islands:
        here = level[island[0]]
        users = [user for vertex in island for user in successors[vertex]]
        if any(colours[user] != colour for user in users):
            continue
        later = [level[user] for user in users if level[user] != here]
        if later:
            for vertex in island:
                level[vertex] = min(later)


def find_islands(predecessors: Sequence[Sequence[int]], labels: Sequence[int]) -> list[list[int]]:
    """The connected parts of the groups of vertices with one label, ascending."""
    sets = DisjointSets(len(predecessors))
    for vertex, sources in enumerate(predecessors):
        for source in sources:
            if labels[source] == labels[vertex]:
                sets.union(source, vertex)
    return list(sets.sets().values())
