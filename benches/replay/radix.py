"""SGLang's tree: a radix tree of 256-token pages over two pools, with two victim orders.

    root ── node(pages) ── node ── node      a node is live while its pages have SWA, a tombstone after
                     └──── node              a hit may end only at a live node (256 tokens cover the window of 128)

full pool   evicts the least recent unlocked leaf, both sides, then every tombstone that became a leaf
SWA pool    evicts the least recent unlocked live node: inside the tree it becomes a tombstone; a leaf goes altogether;
            a leaf whose full side is locked becomes a tombstone

A touch makes a path most recent, the leaf before its ancestors. Both orders are heaps with stale entries.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from benches.replay.rule import PoolTooSmall


@dataclass(eq=False, slots=True)
class Node:
    """An edge of the tree: pages, the depth in pages at its end, and when it was last touched."""

    pages: tuple[int, ...]
    parent: Node | None
    end: int
    stamp: int
    live: bool
    children: dict[int, Node] = field(default_factory=dict)
    in_tree: bool = True


Entry = tuple[int, int, int, Node]  # stamp, end, serial, node


def shared(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Length of the common start."""
    if ours == theirs:
        return len(ours)
    return next(
        (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )


@dataclass(eq=False)
class Tree:
    """Pages of both pools are counted, never named: full and swa are what is left of each.

    thin_pages   None, or: SWA eviction first thins inner nodes, least recent first (sgl#26907): a node that passes a
                 multiple of so many pages keeps its last page, another becomes a tombstone; then as above
    """

    num_full: int
    num_swa: int
    thin_pages: int | None = None

    def __post_init__(self) -> None:
        self.root = Node((), None, 0, 0, live=False)
        self.path: list[Node] = []  # of the running request: full side locked; the last one's SWA as well
        self._clock = 0
        self._serial = 0
        self._leaves: list[Entry] = []
        self._live: list[Entry] = []
        self._inner: list[Entry] = []

    # Finding and inserting

    def walk(self, chain: Sequence[int]) -> list[Node]:
        """The nodes that spell the longest known prefix of a chain; the last is split if the chain leaves inside it."""
        path, node, at = [], self.root, 0
        while at < len(chain) and (child := node.children.get(chain[at])) is not None:
            same = shared(child.pages, chain[at : at + len(child.pages)])
            if same < len(child.pages):
                path.append(self._split(child, same))
                break
            path.append(child)
            node, at = child, at + same
        return path

    def insert(self, chain: Sequence[int], first: int, keep: Iterable[tuple[int, int]]) -> None:
        """Gives pages first … len(chain) of a request, both sides taken from the pools, to the tree; locks the path.

        keep   page ranges whose SWA the request still has, the last page's among them; the rest has slid out
        """
        cuts = sorted({first, len(chain), *(at for pages in keep for at in pages)})
        for cut in cuts:
            self.walk(chain[:cut])  # splits where an edge crosses a cut
        path = self.walk(chain)
        known = path[-1].end if path else 0
        owned = [pages for pages in keep if pages[0] < pages[1]]
        for node in path:
            start = node.end - len(node.pages)
            if start < first:
                continue
            self.num_full += len(node.pages)  # the tree has them already
            if any(low <= start and node.end <= high for low, high in owned) and not node.live:
                node.live = True
            else:
                self.num_swa += len(node.pages)
        for low, high in pairwise(cuts):
            if low >= known:
                path.append(self._grow(path[-1] if path else self.root, chain[low:high], owned))
            elif high > known:
                path.append(self._grow(path[-1], chain[known:high], owned))
        self.lock(path)

    def _grow(self, parent: Node, pages: Sequence[int], owned: list[tuple[int, int]]) -> Node:
        start, end = parent.end, parent.end + len(pages)
        live = any(low <= start and end <= high for low, high in owned)
        if not live:
            self.num_swa += len(pages)
        node = Node(tuple(pages), parent, end, self._clock, live)
        parent.children[pages[0]] = node
        return node

    def lock(self, path: list[Node]) -> None:
        """The running request stands here now, and all of its path is most recent."""
        self._clock += 1
        self.path = path
        for node in path:
            node.stamp = self._clock
            self._push(node)

    def unlock(self) -> None:
        """No request runs."""
        self.path = []

    def _push(self, node: Node) -> None:
        self._serial += 1
        entry = (node.stamp, node.end, self._serial, node)
        if not node.children:
            heapq.heappush(self._leaves, entry)
        if node.live:
            heapq.heappush(self._live, entry)
            if self.thin_pages is not None:
                heapq.heappush(self._inner, entry)

    def _split(self, node: Node, at: int) -> Node:
        """Cuts a node after `at` pages and returns the upper part; the lower one keeps its identity."""
        assert node.parent is not None
        assert 0 < at < len(node.pages)
        upper = Node(node.pages[:at], node.parent, node.end - len(node.pages) + at, node.stamp, node.live)
        node.parent.children[node.pages[0]] = upper
        upper.children[node.pages[at]] = node
        node.pages, node.parent = node.pages[at:], upper
        if node in self.path:
            self.path.insert(self.path.index(node), upper)
        self._push(upper)
        return upper

    # Evicting

    def take(self, full: int, swa: int) -> None:
        """Takes pages from both pools, evicting what must go."""
        while self.num_full < full:
            self._evict_full()
        while self.num_swa < swa:
            self._evict_swa()
        self.num_full -= full
        self.num_swa -= swa

    def give_back(self, full: int, swa: int) -> None:
        """Pages that a request leaves without having given them to the tree."""
        self.num_full += full
        self.num_swa += swa

    def _evict_full(self) -> None:
        aside = []
        while self._leaves:
            entry = heapq.heappop(self._leaves)
            node = entry[3]
            if not node.in_tree or node.children or node.stamp != entry[0]:
                continue
            if node in self.path:
                aside.append(entry)
                continue
            self._delete(node)
            break
        else:
            raise PoolTooSmall("the full pool is held by the running request")
        for entry in aside:
            heapq.heappush(self._leaves, entry)

    def _evict_swa(self) -> None:
        if self.thin_pages is not None and self._thin(self.thin_pages):
            return
        aside = []
        while self._live:
            entry = heapq.heappop(self._live)
            node = entry[3]
            if not node.in_tree or not node.live or node.stamp != entry[0]:
                continue
            if self.path and node is self.path[-1]:
                aside.append(entry)
                continue
            if node.children or node in self.path:
                node.live = False
                self.num_swa += len(node.pages)
            else:
                self._delete(node)
            break
        else:
            raise PoolTooSmall("the SWA pool is held by the running request")
        for entry in aside:
            heapq.heappush(self._live, entry)

    def _thin(self, every: int) -> bool:
        """Tombstones the least recent inner node, all of it or all but its last page; False if none is left to thin."""
        while self._inner:
            stamp, _, _, node = heapq.heappop(self._inner)
            if not node.in_tree or not node.live or node.stamp != stamp or not node.children:
                continue  # a leaf comes back when it is touched or grows
            if self.path and node is self.path[-1]:
                continue
            kept = node.end // every > (node.end - len(node.pages)) // every
            if kept and len(node.pages) == 1:
                continue
            upper = self._split(node, len(node.pages) - 1) if kept else node
            upper.live = False
            self.num_swa += len(upper.pages)
            return True
        return False

    def _delete(self, node: Node) -> None:
        """Removes an unlocked leaf, then the tombstones above that became leaves."""
        assert node.parent is not None
        assert not node.children
        node.in_tree = False
        self.num_full += len(node.pages)
        if node.live:
            self.num_swa += len(node.pages)
        parent = node.parent
        del parent.children[node.pages[0]]
        if parent is not self.root and not parent.children and parent.live:
            self._push(parent)
        self._cascade(parent)

    def _cascade(self, node: Node) -> None:
        while node is not self.root and node.in_tree and not node.children and not node.live and node not in self.path:
            parent = node.parent
            assert parent is not None
            node.in_tree = False
            self.num_full += len(node.pages)
            del parent.children[node.pages[0]]
            if parent is not self.root and not parent.children and parent.live:
                self._push(parent)
            node = parent

    def held(self) -> tuple[int, int]:
        """Full and SWA pages in the tree, counted anew."""
        full = swa = 0
        open_nodes = [self.root]
        while open_nodes:
            node = open_nodes.pop()
            full += len(node.pages)
            swa += len(node.pages) if node.live else 0
            open_nodes += node.children.values()
        return full, swa
