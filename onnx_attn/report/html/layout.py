"""Where the nodes of a drawing stand: in layers from top to bottom, neighbours above each other, edges bent around what is
between.

Layered drawing after Sugiyama, Tagawa, Toda (1981): layers by the longest way, an empty place in every layer that an edge passes,
order by the means of neighbours, positions by means pushed apart. Written here since what there is needs a program beside Python
(graphviz), the network (JavaScript libraries), or is no longer kept up (grandalf); a drawing has a hundred nodes at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

GAP = 22.0
"""Between neighbours of a layer."""
SWEEPS = 8

Edge = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """centres: of each node, its horizontal middle; layers: of each node its layer from the top; routes: of each edge, the
    horizontal places at which it passes the layers between, from top to bottom. width: of the whole drawing. depth: how many
    layers."""

    centres: Sequence[float]
    layers: Sequence[int]
    routes: Mapping[Edge, Sequence[float]]
    width: float
    depth: int


def layered(widths: Sequence[float], edges: Sequence[Edge]) -> Layout:
    """Lay out nodes of these widths; edges go from an earlier node to a later one."""
    count = len(widths)
    layers = _layers(count, edges)
    places, chains, links = [*widths], dict[Edge, list[int]](), list[Edge]()
    rows: list[list[int]] = [[] for _ in range(max(layers, default=-1) + 1)]
    for node in range(count):
        rows[layers[node]].append(node)
    for edge in dict.fromkeys(edges):
        chain = list(range(len(places), len(places) + layers[edge[1]] - layers[edge[0]] - 1))
        places += [0.0] * len(chain)
        for step, place in enumerate(chain, layers[edge[0]] + 1):
            rows[step].append(place)
        chains[edge] = chain
        links += zip([edge[0], *chain], [*chain, edge[1]], strict=True)
    above, below = _neighbours(len(places), links)
    _order(rows, above, below)
    centres = _positions(rows, places, above, below)
    left = min((centres[node] - places[node] / 2 for node in range(len(places))), default=0.0)
    centres = [centre - left for centre in centres]
    width = max((centres[node] + places[node] / 2 for node in range(len(places))), default=0.0)
    routes = {edge: [centres[place] for place in chain] for edge, chain in chains.items()}
    return Layout(centres[:count], layers, routes, width, len(rows))


def _layers(count: int, edges: Sequence[Edge]) -> list[int]:
    """As high as what a node reads allows; then down to just above the nearest reader, so that edges are short."""
    layers = [0] * count
    for start, end in sorted(edges):
        layers[end] = max(layers[end], layers[start] + 1)
    readers: dict[int, list[int]] = {}
    for start, end in edges:
        readers.setdefault(start, []).append(end)
    makers = {end for _, end in edges}
    for node in range(count - 1, -1, -1):
        if node in readers and node not in makers:
            layers[node] = min(layers[reader] for reader in readers[node]) - 1
    return layers


def _neighbours(count: int, links: Sequence[Edge]) -> tuple[list[list[int]], list[list[int]]]:
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for start, end in links:
        below[start].append(end)
        above[end].append(start)
    return above, below


def _order(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    """Each layer by the mean place of its neighbours, downwards and upwards in turn."""
    place = {node: number for row in rows for number, node in enumerate(row)}
    for sweep in range(SWEEPS):
        near = below if sweep % 2 else above
        for row in reversed(rows) if sweep % 2 else rows:
            mean = {n: sum(place[m] for m in near[n]) / len(near[n]) if near[n] else float(place[n]) for n in row}
            row.sort(key=lambda node: (mean[node], place[node]))
            place |= {node: number for number, node in enumerate(row)}


def _positions(
    rows: list[list[int]], widths: Sequence[float], above: list[list[int]], below: list[list[int]]
) -> list[float]:
    centres = [0.0] * len(widths)
    for row in rows:
        _place(row, [0.0] * len(row), widths, centres)
    for sweep in range(SWEEPS):
        near = below if sweep % 2 else above
        for row in reversed(rows) if sweep % 2 else rows:
            wanted = [sum(centres[m] for m in near[n]) / len(near[n]) if near[n] else centres[n] for n in row]
            _place(row, wanted, widths, centres)
    return centres


def _place(row: Sequence[int], wanted: Sequence[float], widths: Sequence[float], centres: list[float]) -> None:
    """As near to where they want to be as keeps their order and the gap: neighbours that would meet become one block, which
    stands where its members want to be on the average."""
    blocks: list[tuple[float, int]] = []  # What members want, added up, and how many there are.
    offsets = [0.0]
    for before, after in pairwise(row):
        offsets.append(offsets[-1] + (widths[before] + widths[after]) / 2 + GAP)
    for number in range(len(row)):
        total, members = wanted[number] - offsets[number], 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / members:
            others, count = blocks.pop()
            total, members = total + others, members + count
        blocks.append((total, members))
    number = 0
    for total, members in blocks:
        for _ in range(members):
            centres[row[number]] = total / members + offsets[number]
            number += 1
